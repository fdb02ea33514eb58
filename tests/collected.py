"""What `make test` collects."""

import pytest

# They have a target of their own.
APART = ("tests/peers", "tests/mteb", "tests/beam", "tests/t5x", "tests/compile", "tests/buckets")
COLLECTED = pytest.StashKey[list[str]]()  # ids of all other tests, in their order
