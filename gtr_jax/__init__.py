"""T5 dual encoders for dense retrieval in JAX (GTR, arXiv 2112.07899)."""

__version__ = "0.1.0"


def __dir__():
  return ["Embedder", "__version__", "load", "train"]


def __getattr__(name):
  # Loaded when asked for, so that `import gtr_jax` stays quick.
  if name in ("load", "Embedder"):
    from gtr_jax.inference import embedder
    return getattr(embedder, name)
  if name == "train":
    from gtr_jax.from_pairs.train import train
    return train
  raise AttributeError(f"module 'gtr_jax' has no attribute {name!r}")
