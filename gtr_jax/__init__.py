"""T5 dual encoders for dense retrieval in JAX (GTR, arXiv 2112.07899)."""

import os as _os

__version__ = "0.1.0"

# In a checkout, gtr_jax.tasks and gtr_jax.configs are the root's tasks/ and gin/; an installed wheel has them inside.
_root = _os.path.dirname(__path__[0])
if _os.path.isfile(_os.path.join(_root, "tasks", "pydoc.py")) and _root not in __path__:
  __path__.append(_root)


def __getattr__(name):
  # Loaded when asked for, so that `import gtr_jax` stays quick.
  if name in ("load", "Embedder"):
    from gtr_jax import embedder
    return getattr(embedder, name)
  raise AttributeError(f"module 'gtr_jax' has no attribute {name!r}")
