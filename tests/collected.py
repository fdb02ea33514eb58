"""What `make test` collects."""

import pytest

APART = ("tests/peers", "tests/mteb", "tests/beam", "tests/t5x", "tests/compile")  # They have a target of their own.
COLLECTED = pytest.StashKey[list[str]]()  # ids of all other tests, in their order
