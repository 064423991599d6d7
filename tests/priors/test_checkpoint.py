"""Reading and writing component folders: what comes back, and what each kind of damage is called."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors.loading import checkpoint, names
from sds_jax.priors.loading.files import CheckpointError

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(unet, tmp_path):
  checkpoint.write_component(tmp_path / "unet", "unet", unet[0], unet[2], dtype=jnp.float32)
  return tmp_path / "unet"


def edit(folder, change):
  tensors = load_file(folder / FILE)
  change(tensors)
  save_file(tensors, folder / FILE)


def message(folder, kind="unet"):
  with pytest.raises(CheckpointError) as error:
    checkpoint.read_component(folder, kind)
  return str(error.value)


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip(unet, clip, folder, tmp_path):
  model, params = checkpoint.read_component(folder, "unet")
  assert model == unet[1]
  assert_equal(params, unet[2])
  checkpoint.write_component(tmp_path / "text", "clip_text", clip[0], clip[2], dtype=jnp.float32)
  model, params = checkpoint.read_component(tmp_path / "text", "clip_text")
  assert model == clip[1]
  assert_equal(params, clip[2])
  assert sorted(path.name for path in folder.iterdir()) == ["config.json", FILE]


def test_names_and_layouts_in_the_file(unet, folder):
  tensors, params = load_file(folder / FILE), unet[2]
  expected = {
    "conv_in.weight": params["conv_in"]["kernel"].transpose(3, 2, 0, 1),
    "time_embedding.linear_1.weight": params["time_embedding"]["linear_1"]["kernel"].T,
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.bias":
      params["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_out_0"]["bias"],
    "up_blocks.1.resnets.1.norm2.weight": params["up_blocks_1"]["resnets_1"]["norm2"]["scale"],
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight":
      params["mid_block"]["attentions_0"]["transformer_blocks_0"]["ff"]["net_0"]["proj"]["kernel"].T,
  }
  for name, value in expected.items():
    np.testing.assert_array_equal(tensors[name], value)


def test_missing_and_unexpected_and_wrong_at_once(folder):
  def change(tensors):
    tensors["extra.weight"] = tensors.pop("conv_in.bias")
    tensors["conv_out.bias"] = np.zeros(3, np.float32)
    tensors["time_embedding.linear_1.weight"] = np.ascontiguousarray(tensors["time_embedding.linear_1.weight"].T)
  edit(folder, change)
  assert message(folder) == f"""{folder}: the weights don't fit the network of config.json
  missing in the file (1): conv_in.bias
  unexpected in the file (1): extra.weight
  wrong shape (2): conv_out.bias is [3] in the file, [12] in the network, time_embedding.linear_1.weight is [8, 32] in \
the file, [32, 8] in the network, transposed?"""


def test_long_lists_are_cut(folder):
  edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("mid_block")])
  assert "missing in the file (46): mid_block.attentions.0.norm.bias, " in message(folder)
  assert message(folder).endswith(", ...")


def test_truncated(folder):
  data = (folder / FILE).read_bytes()
  (folder / FILE).write_bytes(data[:-100])
  assert f"{folder / FILE} ({len(data) - 100} bytes) is damaged or truncated, download it again" in message(folder)


@pytest.mark.parametrize("content, expected", [
  (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer, not the file itself"),
  (b"<!DOCTYPE html><html>Sign in</html>", "is an HTML page, not the file itself"),
  (b"\n<html>", "is an HTML page, not the file itself"),
  (b"", "is empty")])
@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_impostors(folder, name, content, expected):
  (folder / name).write_bytes(content)
  assert message(folder).startswith(f"{folder / name} {expected}")


def test_missing_files(folder):
  assert message(folder / "nowhere") == f"{folder / 'nowhere'} does not exist or is no folder"
  (folder / FILE).unlink()
  assert message(folder).startswith(f"{folder} has no weights: expected {FILE}, ")
  (folder / "config.json").unlink()
  assert message(folder) == f"{folder / 'config.json'} does not exist"


def test_damaged_config(folder):
  (folder / "config.json").write_text('{"sample_size": 4')
  assert message(folder).startswith(f"{folder / 'config.json'} is not JSON: ")
  (folder / "config.json").write_text("[1]")
  assert message(folder) == f"{folder / 'config.json'} holds a JSON list, expected an object"


def test_fp16_variant_and_cast(unet, folder):
  checkpoint.write_component(folder, "unet", unet[0], unet[2], dtype=jnp.float16)
  (folder / FILE).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
  model, params = checkpoint.read_component(folder, "unet", jnp.float32)
  assert_equal(params, jax.tree.map(lambda a: np.asarray(a).astype(np.float16).astype(np.float32), unet[2]))
  model, params = checkpoint.read_component(folder, "unet", jnp.bfloat16)
  assert model.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_bfloat16_file(unet, folder):
  """Made by hand, since not every version of the library writes it: 8 bytes of the header's length, header, data."""
  header, data = {}, b""
  for name, array in load_file(folder / FILE).items():
    half = array.astype(jnp.bfloat16).tobytes()
    header[name] = dict(dtype="BF16", shape=array.shape, data_offsets=[len(data), len(data) + len(half)])
    data += half
  head = json.dumps(header).encode()
  (folder / FILE).write_bytes(len(head).to_bytes(8, "little") + head + data)
  rounded = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), unet[2])
  assert_equal(checkpoint.read_component(folder, "unet", jnp.bfloat16)[1], rounded)
  assert_equal(checkpoint.read_component(folder, "unet")[1], jax.tree.map(lambda a: a.astype(np.float32), rounded))


def shard(folder, index_name=FILE + ".index.json"):
  tensors = load_file(folder / FILE)
  (folder / FILE).unlink()
  parts = [dict(list(tensors.items())[i::3]) for i in range(3)]
  files = [f"diffusion_pytorch_model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
  for part, file in zip(parts, files):
    save_file(part, folder / file)
  weight_map = {name: file for part, file in zip(parts, files) for name in part}
  (folder / index_name).write_text(json.dumps(dict(metadata={}, weight_map=weight_map)))
  return files


@pytest.mark.parametrize("index", [FILE + ".index.json", FILE + ".index.fp16.json"])
def test_sharded(unet, folder, index):
  files = shard(folder, index)
  assert_equal(checkpoint.read_component(folder, "unet")[1], unet[2])
  (folder / files[1]).unlink()
  assert message(folder) == f"{folder / files[1]} does not exist"


def test_shards_that_overlap(folder):
  files = shard(folder)
  tensors = load_file(folder / files[0])
  name = next(iter(load_file(folder / files[2])))
  save_file({**tensors, name: np.zeros(1, np.float32)}, folder / files[0])
  assert message(folder) == f"{name} stands in {files[0]} and again in {files[2]} in {folder}"


def test_dtypes_that_are_no_weights(folder):
  edit(folder, lambda tensors: tensors.update({"conv_in.bias": np.zeros(8, np.int32)}))
  assert message(folder) == (f"{folder / FILE}: conv_in.bias has dtype I32; supported: F64, F32, F16, BF16, F8_E4M3, "
                             "F8_E5M2")


def test_names_of_other_clip_writers(clip, tmp_path):
  """Newer transformers leave the prefix out, older ones add a buffer of positions."""
  checkpoint.write_component(tmp_path, "clip_text", clip[0], clip[2], dtype=jnp.float32)
  tensors = load_file(tmp_path / "model.safetensors")
  assert all(name.startswith("text_model.") for name in tensors)
  bare = {name.removeprefix("text_model."): value for name, value in tensors.items()}
  save_file({**bare, "embeddings.position_ids": np.arange(8)[None]}, tmp_path / "model.safetensors")
  assert_equal(checkpoint.read_component(tmp_path, "clip_text")[1], clip[2])


def test_write_refuses_what_it_could_not_read(unet, tmp_path):
  config, _, params = unet
  with pytest.raises(CheckpointError, match=r"missing in the file \(1\): conv_in/bias"):
    checkpoint.write_component(tmp_path / "a", "unet", config,
                               {**params, "conv_in": {"kernel": params["conv_in"]["kernel"]}})
  huge = {**params, "conv_in": {**params["conv_in"], "bias": jnp.full(8, 1e5)}}
  with pytest.raises(ValueError, match="conv_in.bias has values that are not finite in float16"):
    checkpoint.write_component(tmp_path / "a", "unet", config, huge)
  assert not (tmp_path / "a").exists()


def test_write_that_fails_leaves_the_old_file(unet, folder, monkeypatch):
  before = (folder / FILE).read_bytes()
  def fail(tensors, path, metadata):
    path.write_bytes(b"half")
    raise OSError("disk full")
  monkeypatch.setattr(checkpoint, "save_file", fail)
  with pytest.raises(OSError, match="disk full"):
    checkpoint.write_component(folder, "unet", unet[0], unet[2])
  assert (folder / FILE).read_bytes() == before
  assert sorted(path.name for path in folder.iterdir()) == ["config.json", FILE]


def test_name_tables_are_bijections(unet, clip):
  for model, table in ((unet[1], names.UNET), (clip[1], names.CLIP_TEXT)):
    params = checkpoint.abstract_params(model)
    assert sorted(names.flax_paths(params, table).values()) == sorted(params)
  with pytest.raises(ValueError, match="are both a.weight"):
    names.flax_paths([("a", "kernel"), ("a", "scale")], names.UNET)
  with pytest.raises(ValueError, match="parameter a/gamma: 'gamma' is none of kernel, scale, embedding, bias"):
    names.checkpoint_name(("a", "gamma"), names.UNET)
