"""Tensors of safetensors by their offsets: dtypes of 8 to 64 bits, and 8-bit weights with scales."""
import json
import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sds_jax.priors.loading import checkpoint, names
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.tensor_files import DTYPES, open_tensors

VALUES = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)


def write(path, arrays):
  """A safetensors file of arrays of any dtype, which the library's own writer may not know."""
  header, data = {}, b""
  for name, array in arrays.items():
    dtype = next(key for key, value in DTYPES.items() if np.dtype(value) == array.dtype)
    header[name] = dict(dtype=dtype, shape=list(array.shape), data_offsets=[len(data), len(data) + array.nbytes])
    data += array.tobytes()
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)
  return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path, dtype):
  array = VALUES.astype(DTYPES[dtype]) if dtype != "BOOL" else VALUES > 0
  tensor = open_tensors(write(tmp_path / "w", {"x": np.zeros(1, np.int8), "a": array}))["a"]
  assert (tensor.dtype, tensor.shape) == (dtype, (3, 4))
  np.testing.assert_array_equal(tensor.read(), array)


@pytest.mark.parametrize("length", [128, 384, 0x4B50, 0x4B50 + 65536, 0x80 + 65536])
def test_the_length_of_a_header_is_no_format(tmp_path, length):
  """The first bytes are those of a pickle or of a zip archive."""
  text = json.dumps({"a": dict(dtype="F32", shape=[3, 4], data_offsets=[0, VALUES.nbytes])}).encode().ljust(length)
  path = tmp_path / "w.safetensors"
  path.write_bytes(struct.pack("<Q", length) + text + VALUES.tobytes())
  assert path.read_bytes()[:1] == b"\x80" or path.read_bytes()[:2] == b"PK"
  np.testing.assert_array_equal(open_tensors(path)["a"].read(), VALUES)


def test_files_of_the_library(tmp_path):
  save_file({"a": VALUES, "b": VALUES.astype(np.float16)}, tmp_path / "w", metadata={"format": "pt"})
  tensors = open_tensors(tmp_path / "w")
  np.testing.assert_array_equal(tensors["a"].read(), VALUES)
  assert set(tensors) == {"a", "b"} and tensors["b"].dtype == "F16"


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_scaled_weights_of_8_bits(tmp_path, dtype, ending, shape):
  stored = VALUES.astype(dtype)
  scale = np.full(shape, 0.37, np.float32) * (np.arange(1, 4, dtype=np.float32)[:, None] if shape == (3, 1) else 1)
  path = write(tmp_path / "w", {
    "linear.weight": stored, "linear.bias": VALUES[0], f"linear.{ending}": scale.astype(np.float32),
    "scaled_fp8": np.zeros(2, dtype), "linear.input_scale": np.ones((), np.float32)})
  tensors = open_tensors(path)
  assert set(tensors) == {"linear.weight", "linear.bias"} and tensors["linear.weight"].dtype == "F32"
  np.testing.assert_array_equal(tensors["linear.weight"].read(), stored.astype(np.float32) * scale)
  # Through the checkpoint, as a network of one linear layer in bfloat16.
  expected = {("linear", "kernel"): jnp.zeros((4, 3)), ("linear", "bias"): jnp.zeros(4)}
  with pytest.raises(CheckpointError, match="wrong shape"):
    checkpoint.locate([path], {**expected, ("linear", "kernel"): jnp.zeros((4, 4))}, names.UNET)
  params = checkpoint.load(checkpoint.locate([path], expected, names.UNET), jnp.bfloat16)
  np.testing.assert_array_equal(params["linear"]["kernel"],
                                (stored.astype(np.float32) * scale).T.astype(jnp.bfloat16))


@pytest.mark.parametrize("scale, weight", [(np.ones(2, np.float32), np.dtype(ml_dtypes.float8_e4m3fn)),
                                           (np.ones((), np.int32), np.dtype(ml_dtypes.float8_e4m3fn)),
                                           (np.ones((), np.float32), np.dtype(np.float32))])
def test_scales_that_do_not_fit(tmp_path, scale, weight):
  path = write(tmp_path / "w", {"a.weight": VALUES.astype(weight), "a.scale_weight": scale})
  with pytest.raises(CheckpointError, match=r"a.scale_weight is .* expected one number for a.weight"):
    open_tensors(path)


def test_nan_of_8_bits(tmp_path):
  path = write(tmp_path / "w", {"linear.bias": np.array([1, np.nan], ml_dtypes.float8_e4m3fn)})
  places = checkpoint.locate([path], {("linear", "bias"): jnp.zeros(2)}, names.UNET)
  with pytest.raises(CheckpointError, match="linear.bias has 1 values of 2 that are NaN"):
    checkpoint.load(places, jnp.float32)


def test_a_file_that_shrinks(tmp_path):
  path = write(tmp_path / "w", {"linear.bias": VALUES[0]})
  tensor = open_tensors(path)["linear.bias"]
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(CheckpointError, match="was changed while it was read"):
    tensor.read()


def test_changed_bytes(tmp_path):
  """Whatever byte of a file is changed: tensors of their shapes, or one line."""
  path = write(tmp_path / "w", {"a.weight": VALUES.astype(ml_dtypes.float8_e4m3fn), "a.scale_weight": VALUES[0, :1],
                                "b": VALUES})
  whole, rng = path.read_bytes(), np.random.default_rng(0)
  for _ in range(400):
    data = bytearray(whole)
    for place in rng.integers(0, len(data), rng.integers(1, 4)):
      data[place] = rng.integers(256)
    path.write_bytes(data[:rng.integers(len(data))] if rng.random() < 0.1 else data)
    try:
      for tensor in open_tensors(path).values():
        if tensor.dtype in DTYPES:
          assert tensor.read().shape == tensor.shape
    except CheckpointError as error:
      assert "\n" not in str(error)
