"""An adapter written here, in PEFT, over the T5 of transformers and within sentence-transformers."""

import numpy as np
import peft
import pytest
import torch
import transformers
from etils import epath
from sentence_transformers import SentenceTransformer
from test_convert import GATED
from tiny_model_dir import sentence, tiny_params, write_vocabulary

from gtr_jax.checkpoints.checkpointer import Checkpointer
from gtr_jax.formats.convert import convert
from gtr_jax.formats.model_dir import write_model_json
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.lora import Lora
from gtr_jax.models.parameters import chosen

pytestmark = pytest.mark.peers

TEXTS = [sentence(i, 1 + i * 7 % 30) for i in range(40)]


@pytest.fixture(scope="module", params=[Lora(rank=3, alpha=5.0), Lora(rank=2, kernels=(".*",)),
                                        Lora(rank=1, kernels=("encoder/layers_1/.*/(key|wi_1|wo)/kernel",))])
def place(request, tmp_path_factory):
  """A run whose factors are not 0, and the model of random weights that it began from."""
  place = epath.Path(tmp_path_factory.mktemp("peft"))
  tokenizer = write_vocabulary(place / "spiece.model")
  encoder = DualEncoder(GATED, projection_dim=10, lora=request.param)
  params = tiny_params(encoder, 0)
  for name, of, tree in (("run", encoder, params), ("base", encoder.merged, chosen(params, lambda x: "lora" not in x))):
    write_model_json(place / name, of, tokenizer, query_length=40, document_length=40)
    checkpointer = Checkpointer(place / name / "checkpoints")
    checkpointer.save(1, {"params": tree}, {})
    checkpointer.close()
  convert(place / "base", place / "folder", "sentence-transformers")
  convert(place / "run", place / "adapter", "peft", base_model=str(place / "folder"))
  return place


def test_peft_makes_the_same_vectors(place):
  base = transformers.T5EncoderModel.from_pretrained(str(place / "folder"), local_files_only=True)
  theirs = peft.PeftModel.from_pretrained(base, str(place / "adapter")).eval()
  assert theirs.peft_config["default"].base_model_name_or_path == str(place / "folder")
  model = load_model(place / "run")
  projection = np.asarray(model.params["projection_layer"]["kernel"])
  for merged in (theirs, theirs.merge_and_unload()):
    vectors = []
    for ids in model.tokenizer.encode(TEXTS, 40):
      with torch.no_grad():
        hidden = merged(input_ids=torch.tensor(np.asarray(ids))[None].long()).last_hidden_state.mean(1)[0].numpy()
      vectors.append(hidden @ projection / np.linalg.norm(hidden @ projection))
    np.testing.assert_allclose(embed(model, TEXTS, "passage", progress=False), vectors, rtol=0, atol=1e-5)


def test_sentence_transformers_loads_it(place):
  theirs = SentenceTransformer(str(place / "folder"), device="cpu", local_files_only=True)
  before = theirs.encode(TEXTS)
  theirs.load_adapter(str(place / "adapter"))
  found = embed(load_model(place / "run"), TEXTS, "passage", progress=False)
  np.testing.assert_allclose(found, theirs.encode(TEXTS), rtol=0, atol=1e-5)
  assert np.abs(found - before).max() > 0.01
