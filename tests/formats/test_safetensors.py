import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats import safetensors as ours
from gtr_jax.formats.model_on_disk import Array

VALUES = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones((3,), np.float16),
          "c": np.arange(4, dtype=ml_dtypes.bfloat16).reshape(4, 1), "scalar": np.array(7, np.float32)}


def test_reads_what_the_library_writes(tmp_path):
  safetensors.numpy.save_file(VALUES, tmp_path / "x", metadata={"format": "pt"})
  found = ours.read(tmp_path / "x")
  assert found.keys() == VALUES.keys()
  for name, array in found.items():
    value = array.read()
    assert (array.shape, array.dtype) == (value.shape, value.dtype) == (VALUES[name].shape, VALUES[name].dtype)
    np.testing.assert_array_equal(value, VALUES[name])


def test_the_library_reads_what_is_written(tmp_path):
  transposed = Array((2, 3), np.dtype(np.float32), lambda: VALUES["b"]).transposed()
  arrays = {name: Array(x.shape, x.dtype, lambda x=x: x) for name, x in VALUES.items()} | {"t": transposed}
  ours.write(tmp_path / "x", arrays)
  found = safetensors.numpy.load_file(tmp_path / "x")
  for name, value in {**VALUES, "t": VALUES["b"].T}.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("spoil, text", [
    (lambda data: data[:-1], r"cut short: \w+ \[.*\] lies at bytes [\d,]+ to [\d,]+ of [\d,]+; copy it again"),
    (lambda data: data[:20], "bytes are too few"),
    (lambda data: b"", "is empty; copy it again"),
    (lambda data: b"PK" + data[2:], "too few, or no safetensors file"),
    (lambda data: data[:8] + b"[" + data[9:], "its header cannot be read"),
    (lambda data: data + b"x", "damaged: 1 bytes after its arrays belong to none"),
    (lambda data: data.replace(b"[24,28]", b"[20,24]"), "damaged: scalar .* bytes 20 to 24 .* first 24 are taken"),
    (lambda data: data.replace(b"[24,28]", b"[-4, 0]"), "header cannot be read: -4 is no size or place"),
    (lambda data: data.replace(b'"shape":[2,3]', b'"shape":[2,"]'), "its header cannot be read"),
    (lambda data: data.replace(b'"shape":[2,3]', b'"shape":[2,4]'), "damaged: b"),
    (lambda data: data.replace(b'"F16"', b'"I16"'), "a is of dtype I16; weights are of F64, F32, F16, BF16"),
])
def test_damaged(tmp_path, spoil, text):
  path = epath.Path(tmp_path / "model.safetensors")
  safetensors.numpy.save_file(VALUES, path)
  path.write_bytes(spoil(path.read_bytes()))
  with pytest.raises(InputError, match=text) as e:
    ours.read(path)
  assert str(path) in str(e.value)
  assert "\n" not in str(e.value)


def test_a_named_pipe(tmp_path):
  os.mkfifo(tmp_path / "model.safetensors")
  pipe = os.open(tmp_path / "model.safetensors", os.O_RDWR)
  os.write(pipe, bytes(100))  # If it were read, that would not wait for ever.
  with pytest.raises(InputError, match="model.safetensors: is no regular file; put the file itself there"):
    ours.read(tmp_path / "model.safetensors")
  os.close(pipe)


def test_not_there(tmp_path):
  with pytest.raises(InputError, match="no such file"):
    ours.read(tmp_path / "nothing")
