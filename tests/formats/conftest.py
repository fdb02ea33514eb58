"""Models as others hold them."""

import shutil

import pytest
from etils import epath
from test_convert import GATED, written
from tiny_model_dir import write_model_dir, write_vocabulary

from gtr_jax.models.dual_encoder import DualEncoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  place = epath.Path(tmp_path_factory.mktemp("others"))
  return written(place / "model", DualEncoder(GATED, projection_dim=10), write_vocabulary(place / "vocabulary.model"))


@pytest.fixture
def folder(exported, tmp_path):
  """A sentence-transformers folder."""
  shutil.copytree(exported, tmp_path / "model")
  return epath.Path(tmp_path / "model")


@pytest.fixture
def bare(folder):
  """A T5 folder of transformers."""
  for name in ("modules.json", "config_sentence_transformers.json"):
    (folder / name).unlink()
  for name in ("1_Pooling", "2_Dense", "3_Normalize"):
    shutil.rmtree(folder / name)
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return write_model_dir(epath.Path(tmp_path_factory.mktemp("runs")) / "run")
