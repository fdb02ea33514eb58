"""Training under T5X: `python -m t5x.train` with the encoder, losses and tasks of gtr_jax. Only this folder needs t5x.

`model` is the T5X model, `features` its feature converter, `restore` takes parameters from other checkpoints, and
`evaluation` is what `t5x.eval` runs. `gin/t5x/` has the configurations, `docs/t5x.md` the description.
"""

try:
  import t5x.train  # noqa: F401  All that any of T5X's programs imports.
except ImportError as e:
  raise ImportError(
      f"gtr_jax.integrations.t5x needs T5X and what it imports ({e}): pip install cached_property fiddle grain && "
      "pip install --no-deps git+https://github.com/google/airio git+https://github.com/google-research/jestimator "
      "git+https://github.com/google-research/t5x") from e
