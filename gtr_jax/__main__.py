"""`python -m gtr_jax`, the same as `gtr-jax`."""

import sys

from gtr_jax.cli.main import main

sys.exit(main())
