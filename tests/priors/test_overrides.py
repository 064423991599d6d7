"""Another U-Net or VAE in place of a prior's own; conversion to a folder of safetensors."""
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors import convert, sources
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.base import Options
from sds_jax.priors.from_file import compose
from sds_jax.priors.loading.files import CheckpointError, read_header
from sds_jax.priors.overrides import replaced


@pytest.fixture(scope="module")
def whole(ldm_models, tmp_path_factory):
  """A single file of the kind of Stable Diffusion 1."""
  path = tmp_path_factory.mktemp("whole") / "model.safetensors"
  save_file(ldm_models["SD1"][1], path)
  return path


@pytest.fixture(scope="module")
def other(ldm_models, tmp_path_factory):
  """A folder with another U-Net and another VAE of the same shapes."""
  folder = tmp_path_factory.mktemp("other")
  for name in ("unet", "vae"):
    shutil.copytree(ldm_models["SD1"][0] / name, folder / name)
    file = folder / name / "diffusion_pytorch_model.safetensors"
    save_file({key: array + 1 for key, array in load_file(file).items()}, file)
  return folder


def assert_equal(first, second):
  assert set(first) == set(second)
  for name, array in first.items():
    np.testing.assert_array_equal(array, second[name].reshape(array.shape), err_msg=name)


@pytest.mark.parametrize("name, forms", [
  ("unet", ("folder", "file alone", "with the prefix")), ("vae", ("whole folder", "file", "original names"))])
def test_other_networks(whole, other, ldm_models, stored_arrays, tmp_path, name, forms):
  file = other / name / "diffusion_pytorch_model.safetensors"
  paths = {"folder": other / name, "whole folder": other, "file": file, "file alone": shutil.copy(file, tmp_path)}
  for form in forms:
    path = paths.get(form, tmp_path / "w.safetensors")
    if form not in paths:
      save_file(original(name, load_file(file), "prefix" in form), path)
    base = ldm_models["SD1"][0] if form == forms[0] else compose(whole, Options())
    folder = replaced(base, name, str(path))
    assert_equal(stored_arrays(folder / name, name)[1], load_file(file))
    assert str(folder) == str(base) and (folder / "text_encoder" / "config.json").is_file()
  assert_equal(stored_arrays(folder / "text_encoder", "clip_text")[1],
               load_file(ldm_models["SD1"][0] / "text_encoder" / "model.safetensors"))


def original(name, tensors, prefix):
  """The tensors under the names of the original code."""
  from sds_jax.priors.loading import ldm_names
  rule = ldm_names.vae_rule(2) if name == "vae" else ldm_names.unet_rule(1, frozenset({1}))
  start = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}[name] if prefix else ""
  result = {"loss.logvar": np.zeros((), np.float32)} if name == "vae" and not prefix else {}
  for key, array in tensors.items():
    place = rule(key).key
    convolution = "attn_1" in place or "proj_in" in place or "proj_out" in place
    result[start + place] = array[:, :, None, None] if convolution and array.ndim == 2 else array
  return result


def test_the_scale_of_latents_stays_the_priors(whole, other, tmp_path):
  path = shutil.copy(other / "vae" / "diffusion_pytorch_model.safetensors", tmp_path)
  prior, weights = prior_lib.open_prior(whole, vae=str(path))
  assert weights.networks["vae"].scaling_factor == 0.18215 and prior.image_size == 128


@pytest.mark.parametrize("name, text, words", [
  ("unet", "nowhere", r"config.prior.unet='nowhere': there is no such file or folder"),
  ("vae", "a\0b", r"there is no such file or folder"),
  ("unet", "{vae}", r"is an autoencoder .VAE. alone, and not a file of a U-Net"),
  ("vae", "{unet}", "is a U-Net alone, and not a file of a VAE"), ("vae", "{empty}", "the folder has no config.json"),
  ("unet", "{text}", "is no file of weights")])
def test_what_is_no_such_network(whole, other, tmp_path, name, text, words):
  (tmp_path / "empty").mkdir()
  (tmp_path / "notes.txt").write_text("hello")
  text = text.format(empty=tmp_path / "empty", text=tmp_path / "notes.txt", **{
    part: other / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae")})
  with pytest.raises(CheckpointError, match=words) as caught:
    prior_lib.open_prior(whole, **{name: text})
  assert "\n" not in str(caught.value)


def test_networks_that_do_not_fit(whole, sd_folder):
  with pytest.raises(CheckpointError, match="wrong shape|is 12, expected 64|text"):
    prior_lib.open_prior(whole, unet=str(sd_folder / "unet"))


@pytest.mark.parametrize("name, value", [("prediction_type", "epsilon"), ("ema", True), ("config", "x")])
def test_options_of_files_for_a_folder(sd_folder, name, value):
  with pytest.raises(CheckpointError, match=rf"config.prior.{name}=.* has no effect on the folder .*: set it to"):
    prior_lib.open_prior(sd_folder, **{name: value})


@pytest.mark.parametrize("dtype, expected", [("stored", np.float16), ("float32", np.float32)])
def test_conversion(whole, ldm_models, tmp_path, dtype, expected, capsys):
  convert.main([str(whole), str(tmp_path / "folder"), f"--dtype={dtype}"])
  assert f"the folder lies in {tmp_path / 'folder'}" in capsys.readouterr().out
  assert sources.missing(tmp_path / "folder") == []
  for part in ("unet", "vae", "text_encoder"):
    file = next((ldm_models["SD1"][0] / part).glob("*.safetensors"))
    converted = load_file(tmp_path / "folder" / part / file.name)
    assert_equal(converted, load_file(file))
    assert {array.dtype for array in converted.values()} == {np.dtype(expected)}
  prior, _ = prior_lib.open_prior(tmp_path / "folder")
  assert (prior.prediction_type, prior.image_size) == ("epsilon", 128)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_conversion_of_a_folder_of_pickles(zero123_folders, tmp_path):
  torch = pytest.importorskip("torch")
  folder = shutil.copytree(zero123_folders["Zero1to3StableDiffusionPipeline"], tmp_path / "in")
  file = folder / "vae" / "diffusion_pytorch_model.safetensors"
  tensors = load_file(file)
  torch.save({key: torch.from_numpy(array) for key, array in tensors.items()}, file.with_suffix(".bin"))
  file.unlink()
  with pytest.warns(UserWarning, match="is a pickle"):
    convert.convert(str(folder), tmp_path / "out", Options(), "bfloat16")
  header, _ = read_header(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
  assert header.keys() - {"__metadata__"} == tensors.keys()
  assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def test_conversion_is_whole_or_not_at_all(whole, ldm_models, tmp_path, capsys):
  """NaN is found when its tensor is written: nothing is left behind."""
  tensors = dict(ldm_models["SD1"][1])
  tensors["model.diffusion_model.out.2.bias"] = np.full(4, np.nan, np.float16)
  save_file(tensors, tmp_path / "nan.safetensors")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "x").write_text("")
  for arguments, words in (((tmp_path / "nan.safetensors", tmp_path / "out"), "that are NaN or infinite"),
                           ((whole, tmp_path / "full"), "full exists: name a folder that does not exist"),
                           ((whole, tmp_path / "no" / "out"), "no does not exist"),
                           ((tmp_path / "gone.safetensors", tmp_path / "out"), "there is no such file"),
                           ((whole, tmp_path / "out", "--ema", "--prediction_type=x"), "invalid choice")):
    with pytest.raises(SystemExit) as caught:
      convert.main(list(map(str, arguments)))
    assert caught.value.code == 2 and words in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "nan.safetensors"]
