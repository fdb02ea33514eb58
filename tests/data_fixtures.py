"""A small vocabulary and an empty data root; for test modules with `pytest_plugins = "data_fixtures"`."""

import pytest
from tiny_text import words

from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.io import data_root


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
  """Path of a vocabulary of 300 pieces."""
  path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
  train_vocabulary([words(12, i) + f" q{i} p{i}" for i in range(400)], path, size=300)
  return str(path)


@pytest.fixture
def data_dir(tmp_path):
  """An empty data root, set as this process's."""
  folder = tmp_path / "data"
  folder.mkdir()
  data_root.set_data_dir(str(folder))
  yield folder
  data_root.set_data_dir(None)
