"""ControlNet of a latent prior: folders, single files, the hub, errors, and its part in the prior's prediction."""
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors import controlnets, prior as prior_lib, sample
from sds_jax.priors.controlnets import ControlNetChoice, open_controlnet
from sds_jax.priors.loading import checkpoint, controlnet_names
from sds_jax.priors.loading import hub as hub_lib
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.networks.controlnet import ControlNetModel

FILE = "diffusion_pytorch_model.safetensors"
CONFIG = dict(  # of the U-Net in `sd_folder`, for images of 16x16
  _class_name="ControlNetModel", in_channels=4, down_block_types=["CrossAttnDownBlock2D"], block_out_channels=[32],
  layers_per_block=1, norm_num_groups=8, cross_attention_dim=12, attention_head_dim=2,
  conditioning_embedding_out_channels=[4, 8])
REPO, COMMIT = "lllyasviel/control_v11f1p_sd15_depth", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def control(random_params, tmp_path_factory):
  """(folder, parameters) of a tiny ControlNet."""
  folder = tmp_path_factory.mktemp("control") / "tiny_depth"
  params = random_params(ControlNetModel.from_config(CONFIG))
  checkpoint.write_component(folder, "controlnet", CONFIG, params, dtype=jnp.float32)
  return folder, params


@pytest.fixture(scope="module")
def original(control, tmp_path_factory):
  """A single file with the names of the original files, beside other networks; its config.json beside it."""
  folder = tmp_path_factory.mktemp("original")
  network = ControlNetModel.from_config(CONFIG)
  tensors = {controlnet_names.PREFIX + controlnet_names.original_name(name, network): value
             for name, value in load_file(control[0] / FILE).items()}
  others = {"model.diffusion_model.out.0.weight": np.ones(3, np.float32), "betas": np.ones(3, np.float32)}
  save_file({**tensors, **others}, folder / "control_depth.safetensors")
  save_file({name.removeprefix(controlnet_names.PREFIX): value for name, value in tensors.items()},
            folder / "bare_depth.safetensors")
  shutil.copy(control[0] / FILE, folder / "diffusers_depth.safetensors")
  (folder / "config.json").write_text(json.dumps(CONFIG))
  return folder


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("file", ["control_depth", "bare_depth", "diffusers_depth"])
def test_single_files_have_the_parameters_of_the_folder(original, control, file):
  opened = open_controlnet(ControlNetChoice(str(original / f"{file}.safetensors")), jnp.float32)
  same(checkpoint.load(opened.places, jnp.float32), control[1])


def test_a_folder_of_a_pipeline_has_its_controlnet_inside(control, tmp_path):
  shutil.copytree(control[0], tmp_path / "controlnet")
  opened = open_controlnet(ControlNetChoice(str(tmp_path)), jnp.bfloat16)
  assert opened.network.dtype == jnp.bfloat16
  same(checkpoint.load(opened.places, jnp.float32), control[1])


@pytest.mark.parametrize("name, kind", [
  ("lllyasviel/control_v11f1p_sd15_depth", "depth"), ("lllyasviel/control_v11p_sd15_normalbae@main", "normal"),
  ("depth", "depth"), ("normal", "normal"), ("/depth/control_v11p_sd15_canny", ""), ("depth_and_normal", ""),
  ("~/Models/Control_Depth-fp16.safetensors", "depth")])
def test_names_tell_the_kind(name, kind):
  assert controlnets.kind_of_name(name) == kind


@pytest.fixture(scope="module")
def priors(sd_folder, control):
  """{scale: (prior, parameters)} with the ControlNet, and the prior without it under None."""
  choice = ControlNetChoice(str(control[0]), "depth", 0.5)
  return {None: prior_lib.build(sd_folder), 0.5: prior_lib.build(sd_folder, controlnet=choice)}


def test_the_residuals_enter_the_prediction(priors, control, quick_jit):
  rng = np.random.default_rng(0)
  z, text, image = (jnp.asarray(rng.uniform(size=shape), jnp.float32)
                    for shape in ((3, 8, 8, 4), (3, 8, 12), (3, 16, 16, 3)))
  z, text = (leaf.at[2].set(leaf[1]) for leaf in (z, text))  # the last two differ in the image alone
  t, (prior, params) = jnp.array([3, 700, 700]), priors[0.5]
  assert set(params) == {"unet", "vae", "controlnet"} and prior.control == "depth" and priors[None][0].control == ""
  same(params["controlnet"], control[1])
  unet = checkpoint.COMPONENTS["unet"].network
  unet = unet.from_config(json.loads((prior.source.folder / "unet" / "config.json").read_text()))
  network = ControlNetModel.from_config(CONFIG)

  def predictions(params, z, t, text, image):
    cond = dict(text=text, control=image)
    residuals = tuple(0.5 * one for one in network.apply({"params": params["controlnet"]}, z, t, text, image))
    by_hand = unet.apply({"params": params["unet"]}, z, t, text, residuals=residuals)
    return by_hand, prior.denoise(params, z, t, cond)

  by_hand, got = map(np.asarray, quick_jit(predictions, params, z, t, text, image))
  np.testing.assert_allclose(got, by_hand, atol=1e-5)
  assert np.abs(got[2] - got[1]).max() > 1e-2


def test_image_and_prior_belong_together(priors):
  z, t, text, image = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1, int), jnp.zeros((1, 8, 12)), jnp.zeros((1, 16, 16, 3))
  with pytest.raises(ValueError, match="the prior has a ControlNet, but cond has no image `control`"):
    priors[0.5][0].denoise(priors[0.5][1], z, t, dict(text=text))
  with pytest.raises(ValueError, match="cond has an image `control`, but this prior has no ControlNet"):
    priors[None][0].denoise(priors[None][1], z, t, dict(text=text, control=image))
  with pytest.raises(ValueError, match=r"image has shape \(1, 8, 8, 3\), the network takes \[B, 16, 16, 3\]"):
    priors[0.5][0].denoise(priors[0.5][1], z, t, dict(text=text, control=image[:, :8, :8]))


class FakeHub:
  """A hub with one repository, whose files are those of a folder; records what is fetched."""

  def __init__(self, folder, cache):
    self.folder, self.cache, self.fetched = folder, cache, []

  def list_files(self, repo, revision):
    return [".gitattributes", "diffusion_pytorch_model.bin", *(path.name for path in self.folder.iterdir())]

  def fetch(self, repo, revision, files):
    assert (repo, revision) == (REPO, "main")
    snapshot = self.cache / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for name in files:
      shutil.copy(self.folder / name, snapshot / name)
    self.fetched += files
    return snapshot

  def hub(self):
    return hub_lib.Hub(self.cache, self.list_files, self.fetch)


def test_of_the_hub_the_config_comes_first(control, tmp_path):
  fake = FakeHub(control[0], tmp_path)
  with checkpoint.configs_only():
    assert not open_controlnet(ControlNetChoice("depth"), jnp.float32, fake.hub()).places
  assert fake.fetched == ["config.json"]
  opened = open_controlnet(ControlNetChoice(REPO), jnp.float32, fake.hub())
  assert FILE in fake.fetched
  same(checkpoint.load(opened.places, jnp.float32), control[1])
  fake.fetched.clear()
  open_controlnet(ControlNetChoice(REPO), jnp.float32, fake.hub())
  assert not fake.fetched  # from the cache


@pytest.mark.parametrize("change, message", [
  (dict(cross_attention_dim=16), "does not fit the prior: its cross_attention_dim is 16, that of the prior's U-Net 12"),
  (dict(conditioning_embedding_out_channels=[4, 8, 8]), "reads images of 32 pixels and 3 channels, expected 16 and 3"),
  (dict(_class_name="T2IAdapter"), "_class_name='T2IAdapter' is no ControlNet"),
  (dict(global_pool_conditions=True), "ControlNetModel config: global_pool_conditions=True is not supported"),
  (dict(conditioning_channels="three"), "ControlNetModel config: conditioning_channels='three' is not supported"),
  (dict(addition_embed_type="text"), "ControlNetModel config: addition_embed_type='text' is not supported"),
  (dict(new=1), "ControlNetModel config: new=1 is not a known option")])
def test_what_does_not_fit_is_one_line(sd_folder, tmp_path, change, message):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
  with checkpoint.configs_only(), pytest.raises(CheckpointError) as error:
    prior_lib.open_prior(sd_folder, controlnet=ControlNetChoice(str(tmp_path)))
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_another_version_is_refused(tmp_path):
  keys = ("control_model.input_hint_block.0.weight",
          "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
  save_file({key: np.zeros((2, 1024), np.float32) for key in keys}, tmp_path / "sd21.safetensors")
  save_file({"some.weight": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
  for file, message in (("sd21", "is a ControlNet of Stable Diffusion 2.x, by the width 1024 of the text"),
                        ("other", "is a file of weights of an unknown kind"), ("none", "does not exist")):
    with pytest.raises(CheckpointError, match=message):
      open_controlnet(ControlNetChoice(str(tmp_path / f"{file}.safetensors")), jnp.float32)
  with pytest.raises(CheckpointError, match="'canny' is neither a name .'depth', 'normal'. nor a folder or file"):
    open_controlnet(ControlNetChoice("canny"), jnp.float32)


def test_another_family_takes_none(prior_folder, control):
  with pytest.raises(CheckpointError, match="of the family ShapeWorld takes no ControlNet, here .*tiny_depth'; supp"):
    prior_lib.open_prior(prior_folder, controlnet=ControlNetChoice(str(control[0])))


def test_command(priors, tmp_path, monkeypatch):
  chosen, sides = [], []

  def build(name, dtype, controlnet, **others):
    chosen.append(controlnet)
    return priors[0.5]

  def ddim(prior, params, cond, uncond, *rest):  # the network takes long to compile
    sides.extend((cond, uncond))
    return jnp.zeros((2, 16, 16, 3))

  monkeypatch.setattr(sample, "build", build)
  monkeypatch.setattr(sample, "ddim", ddim)
  Image.new("L", (40, 40), 255).save(tmp_path / "white.png")
  sample.main([f"--out={tmp_path / 'x.png'}", "--num=2", "--prompt=a red cube", "--controlnet=depth",
               f"--control={tmp_path / 'white.png'}", "--controlnet_scale=0.5"])
  assert chosen == [ControlNetChoice("depth", "image", 0.5)]
  assert [side["control"].shape for side in sides] == [(2, 16, 16, 3)] * 2


@pytest.mark.parametrize("arguments", [["--controlnet=depth"], ["--control=x.png"]])
def test_both_flags_go_together(monkeypatch, capsys, arguments):
  monkeypatch.setattr(sample, "build", None)
  with pytest.raises(SystemExit):
    sample.main(["--prompt=a red cube", *arguments])
  assert "give --controlnet=NAME and --control=FILE together" in capsys.readouterr().err
