"""Weights are read one by one, so that no second copy of them exists; variants of files by all their names."""
import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys
import tracemalloc

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sds_jax.priors.loading import checkpoint, finite
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.tensor_files import open_tensors

TENSORS, SHAPE = 24, (256, 1024)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """24 tensors of 0.5 MiB in float16."""
  file = tmp_path_factory.mktemp("weights") / "w.safetensors"
  save_file({f"layer.{i}.weight": np.full(SHAPE, i, np.float16) for i in range(TENSORS)}, file)
  return places_in(file)


def places_in(file):
  return {(*key.replace("r.", "r_").split(".")[:1], "kernel"): checkpoint.Stored(file, key, tensor.shape, tensor.read)
          for key, tensor in open_tensors(file).items()}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.bfloat16])
def test_the_host_holds_a_few_tensors_at_a_time(places, dtype):
  """Of 12 MiB (24 as float32): one as it is in the file, one cast, and what the library takes for itself."""
  largest = SHAPE[0] * SHAPE[1] * max(2, jnp.dtype(dtype).itemsize)
  tracemalloc.start()
  try:
    tree = checkpoint.load(places, dtype, lambda array: (array.shape, array.dtype, float(array[0, 0])))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 5 * largest < TENSORS * largest / 4
  assert tree["layer_7"]["kernel"] == (SHAPE[::-1], jnp.dtype(dtype), 7.0)


def test_each_goes_to_the_device_before_the_next_is_read(places, monkeypatch):
  events, put = [], jax.device_put

  def recording(stored):
    return dataclasses.replace(stored, read=lambda: (events.append("read"), stored.read())[1])

  monkeypatch.setattr(jax, "device_put", lambda array: (events.append("put"), put(array))[1])
  tree = checkpoint.load_on_device({path: recording(stored) for path, stored in places.items()}, jnp.bfloat16)
  assert events == ["read", "put"] * TENSORS
  assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(tree))
  np.testing.assert_array_equal(tree["layer_3"]["kernel"], np.full(SHAPE[::-1], 3, jnp.bfloat16))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc, which Linux has")
def test_the_process_grows_by_the_parameters_alone(tmp_path):
  """50 MB of float16, as float32: a second copy would be 100 MB."""
  config = dict(model_type="clip_text_model", vocab_size=100, hidden_size=512, intermediate_size=2048,
                num_hidden_layers=8, num_attention_heads=8, max_position_embeddings=8, hidden_act="gelu")
  shapes = checkpoint.abstract_params(checkpoint.CLIPTextModel.from_config(config))
  params = traverse_util.unflatten_dict({path: np.full(leaf.shape, 0.5, np.float16) for path, leaf in shapes.items()})
  checkpoint.write_component(tmp_path, "clip_text", config, params)
  script = Path(__file__).parent / "measure_loading.py"
  done = subprocess.run([sys.executable, script, tmp_path, "clip_text", "float32"], capture_output=True, text=True,
                        check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
  got = json.loads(done.stdout)
  assert 100e6 < got["params"] < 110e6
  assert 0.9 * got["params"] < got["grown"] < 1.2 * got["params"] + 3 * got["largest"], got


@pytest.mark.parametrize("files, expected", [
  (["m.safetensors", "m.fp16.safetensors", "m.bf16.safetensors"], ["m.safetensors"]),
  (["m.fp16.safetensors", "m.bf16.safetensors", "m.non_ema.safetensors"], ["m.bf16.safetensors"]),
  (["m.fp16.safetensors", "m.bin"], ["m.fp16.safetensors"]),
  (["m.fp16.bin", "m.bin", "m.ckpt"], ["m.bin"]), (["m.fp16.bin", "m.msgpack"], ["m.fp16.bin"]),
  (["m.bin.index.json"], ["m-1.safetensors", "m-2.safetensors"]),
  (["m.safetensors.index.json", "m.fp16.safetensors"], ["m-1.safetensors", "m-2.safetensors"]),
  (["m.safetensors.index.fp16.json"], ["m-1.safetensors", "m-2.safetensors"]),
  (["m.bf16.safetensors.index.json"], ["m-1.safetensors", "m-2.safetensors"])])
def test_which_files_are_read(tmp_path, files, expected):
  for name in files:
    (tmp_path / name).write_text(json.dumps(dict(weight_map=dict(b="m-2.safetensors", a="m-1.safetensors"))))
  assert checkpoint.weight_files(tmp_path, "m") == [tmp_path / name for name in expected]


def test_other_files_are_told(tmp_path):
  for name in ("m.ckpt", "m.pth", "m.msgpack"):
    (tmp_path / name).write_text("")
  with pytest.raises(CheckpointError, match="expected m.safetensors, m.fp16.safetensors, shards with "
                                            "m.safetensors.index.json, or m.bin, and m.ckpt, m.msgpack, m.pth is none"):
    checkpoint.weight_files(tmp_path, "m")
  (tmp_path / "pytorch_model.bin").write_text("")
  assert checkpoint.weight_files(tmp_path, "model") == [tmp_path / "pytorch_model.bin"]


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_told(tmp_path, stored, value):
  array = np.linspace(-3, 3, 12).reshape(3, 4).astype(jnp.dtype(stored))
  assert finite.is_finite(array) and finite.is_finite(np.full(3, jnp.finfo(array.dtype).max, array.dtype))
  array[1, 2] = value
  with pytest.raises(CheckpointError) as error:
    finite.check_finite(tmp_path / "w", "a.weight", array, jnp.dtype(jnp.float32))
  assert str(error.value).startswith(f"{tmp_path / 'w'}: the tensor a.weight has 1 values of 12 that are NaN or "
                                     "infinite, the first at [1, 2]")


def test_the_tensor_is_named(places, tmp_path):
  (path, stored), *_ = places.items()
  array = np.zeros(SHAPE, np.float16)
  array[0, 3] = np.nan
  save_file({stored.key: array}, tmp_path / "w.safetensors")
  with pytest.raises(CheckpointError, match=rf"w.safetensors: the tensor {stored.key} has 1 values"):
    checkpoint.load(places_in(tmp_path / "w.safetensors"), jnp.float32)
  save_file({stored.key: np.full(SHAPE, 1e6, np.float32)}, tmp_path / "w.safetensors")
  with pytest.raises(CheckpointError, match="has values outside the range of float16 .at most 65504"):
    checkpoint.load(places_in(tmp_path / "w.safetensors"), jnp.float16)
