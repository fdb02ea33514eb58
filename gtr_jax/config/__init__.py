"""Experiments are gin files: reading them, refusing what nothing uses, and printing what a run resolved to.

Library code knows nothing of gin: files begin with `from __gin__ import dynamic_registration` and name our functions
and classes by their module. Only this package imports gin.
"""

from gtr_jax.config.parsing import bindings, bound, configs_dir, macro_names, parse, set_defaults
from gtr_jax.config.resolving import load, resolved

__all__ = ["bindings", "bound", "configs_dir", "load", "macro_names", "parse", "resolved", "set_defaults"]
