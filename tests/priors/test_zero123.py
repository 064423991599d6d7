"""Folders of Zero-1-to-3 as they are published, but small: what is read of them, what is fetched, what is refused."""
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors import photo as photo_lib, prior as prior_lib, sources
from sds_jax.priors.families import zero123
from sds_jax.priors.loading import checkpoint, hub
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.networks import pose_layers
from sds_jax.views import poses

KINDS = ("Zero123Pipeline", "Zero1to3StableDiffusionPipeline")
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model",
           "clip_camera_projection": "diffusion_pytorch_model"}


@pytest.fixture(scope="module", params=KINDS)
def built(request, zero123_folders):
  return request.param, *prior_lib.build(zero123_folders[request.param])


def test_facts(built):
  kind, prior, params = built
  assert (prior.image_size, prior.x_shape, prior.x_bound, prior.prediction_type) == (16, (8, 8, 4), None, "epsilon")
  assert prior.vocabulary is None and (prior.camera_dim, prior.ray_dim) == (0, 0)
  assert prior.photo.pose == "distance" and set(params) == {"unet", "vae", "cc_projection"}
  assert params["cc_projection"]["projection"]["kernel"].shape == (772, 768)
  assert params["unet"]["conv_in"]["kernel"].shape == (3, 3, 8, 32)
  with pytest.raises(ValueError, match="is conditioned on a photo, not on a prompt: use configs/image.py"):
    prior.embed(["a cube"])


def test_from_a_photo_to_noise(built, quick_jit, zero123_folders):
  """One token, the distribution's mean unscaled, and a prediction that depends on photo and pose, both or none."""
  kind, prior, params = built
  rng = np.random.default_rng(0)
  photo = jnp.asarray(rng.uniform(size=(16, 16, 3)), jnp.float32)
  features = prior.photo.encode(photo)
  assert features["tokens"].shape == (1, 768) and features["x"].shape == (8, 8, 4) and np.isnan(features["elevation"])
  vae, vae_params = checkpoint.read_component(zero123_folders[kind] / "vae", "vae")
  mean, _ = quick_jit(lambda p, x: vae.apply({"params": p}, x, method="encode"), vae_params, 2 * photo[None] - 1)
  np.testing.assert_allclose(features["x"], mean[0], rtol=1e-3, atol=1e-4)
  pose = poses.relative_pose(jnp.asarray([0.2, 0.9]), jnp.asarray([0.0, 2.0]), jnp.float32(0.1), jnp.float32(0.0))
  cond = prior.photo.conditions(params, features, pose)
  z = jnp.asarray(rng.normal(size=(1, 8, 8, 4)), jnp.float32)
  null = photo_lib.null_condition(cond)
  conditions = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), cond, null, dict(cond, x=null["x"]))
  eps = quick_jit(lambda p, z, c: prior.denoise(p, jnp.repeat(z, 6, 0), jnp.full(6, 300), c), params, z, conditions)
  assert eps.shape == (6, 8, 8, 4) and eps.dtype == jnp.float32 and np.all(np.isfinite(eps))
  np.testing.assert_allclose(eps[2], eps[3], rtol=1e-4, atol=1e-5)  # the null condition has no pose
  far = [float(jnp.abs(eps[a] - eps[b]).max()) for a, b in ((0, 1), (0, 2), (0, 4), (4, 5))]
  assert min(far) > 1e-3, far


def test_shapes_are_known_before_the_weights(zero123_folders):
  _, weights = prior_lib.open_prior(zero123_folders[KINDS[0]], jnp.bfloat16)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), weights.shapes) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), weights.load())


def test_resizing_is_the_pipelines(zero123_folders, quick_jit):
  """Two pipelines, the same weights, another way to 12x12; and in both the feature extractor's mean is taken off."""
  photo = jnp.asarray(np.random.default_rng(1).uniform(size=(16, 16, 3)), jnp.float32)
  tokens = []
  for kind in KINDS:
    prior, _ = prior_lib.open_prior(zero123_folders[kind])
    encoder, params = checkpoint.read_component(zero123_folders[kind] / "image_encoder", "image_encoder")

    def expected(params, photo, resize=zero123.RESIZE[kind], encoder=encoder):
      pixels = (resize(photo[None], 12) - jnp.asarray([[[[0.48145466, 0.4578275, 0.40821073]]]])) / jnp.asarray(
        [[[[0.26862954, 0.26130258, 0.27577711]]]])
      return encoder.apply({"params": params}, pixels)[0, :1]

    tokens.append(prior.photo.encode(photo)["tokens"])
    np.testing.assert_allclose(tokens[-1], quick_jit(expected, params, photo), rtol=1e-3, atol=1e-4)
  assert float(jnp.abs(tokens[0] - tokens[1]).max()) > 1e-3


def edit(path, **changes):
  value = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


CAMERA = "clip_camera_projection"


@pytest.mark.parametrize("break_it, expected", [
  (lambda p: shutil.rmtree(p / "image_encoder"), "{p}/image_encoder does not exist or is no folder"),
  (lambda p: shutil.rmtree(p / CAMERA), "{p}/clip_camera_projection does not exist or is no folder"),
  (lambda p: shutil.rmtree(p / "vae"), "{p}/vae does not exist or is no folder"),
  (lambda p: (p / CAMERA / "diffusion_pytorch_model.safetensors").unlink(),
   "{p}/clip_camera_projection has no weights: expected diffusion_pytorch_model.safetensors, "
   "diffusion_pytorch_model.fp16.safetensors, shards with diffusion_pytorch_model.safetensors.index.json, or "
   "diffusion_pytorch_model.bin"),
  (lambda p: edit(p / "model_index.json", pose="elevation"),
   "{p}/model_index.json: pose='elevation' is none of 'polar', 'distance': 'polar' is right for Stable-Zero123's "
   "weights, 'distance' for Zero-1-to-3's"),
  (lambda p: edit(p / "model_index.json", _class_name="Zero123PlusPipeline"),
   "{p}/model_index.json: _class_name='Zero123PlusPipeline' (Zero123++, which draws six views as one image) is not "
   "supported; supported: 'StableDiffusionPipeline' (1.x and 2.x), 'StableDiffusionXLPipeline' (base, turbo, "
   "fine-tunes), 'IFPipeline' (the first stage), 'Zero123Pipeline' and 'Zero1to3StableDiffusionPipeline', "
   "'MVDreamPipeline' (4 views, Stable Diffusion 2.1), folders of ours with the key pixel_unshuffle"),
  (lambda p: edit(p / "unet" / "config.json", in_channels=4), "{p}: the U-Net's in_channels is 4, expected 8"),
  (lambda p: edit(p / "unet" / "config.json", cross_attention_dim=32),
   "{p}: the width that clip_camera_projection gives is 768, expected 32"),
  (lambda p: edit(p / CAMERA / "config.json", additional_embeddings=8),
   "{p}: clip_camera_projection takes 776 numbers, expected 772, the image encoder's projection_dim and 4 of the pose"),
  (lambda p: edit(p / CAMERA / "config.json", embedding_dim="768"),
   "{p}/clip_camera_projection/config.json: CCProjection config: embedding_dim='768' should be a positive integer, at "
   "most 65536"),
  (lambda p: edit(p / CAMERA / "config.json", in_channel=772),
   "{p}/clip_camera_projection/config.json: CCProjection config: in_channel=772 is not a known option; known: "
   "embedding_dim, additional_embeddings"),
  (lambda p: edit(p / "image_encoder" / "config.json", hidden_act="relu"),
   "{p}/image_encoder/config.json: CLIPVisionModelWithProjection config: hidden_act='relu' is not supported; "
   "supported: 'quick_gelu', 'gelu'"),
])
def test_refusals(zero123_folders, tmp_path, monkeypatch, break_it, expected):
  folder = tmp_path / "p"
  shutil.copytree(zero123_folders["Zero123Pipeline"], folder)
  break_it(folder)
  monkeypatch.setattr(checkpoint, "locate", lambda *args: {})  # configs alone are at fault
  with pytest.raises(ValueError) as caught:
    prior_lib.open_prior(folder)
  assert str(caught.value) == expected.format(p=folder)


def test_weights_of_other_widths(zero123_folders, tmp_path):
  shutil.copytree(zero123_folders["Zero1to3StableDiffusionPipeline"] / "cc_projection", tmp_path / "p")
  edit(tmp_path / "p" / "config.json", out_channel=32)
  with pytest.raises(CheckpointError, match=r"(?s)don't fit the network of config.json.*wrong shape \(2\): "
                                            r"projection.bias is \[768\] in the file, \[32\] in the network, "
                                            "projection.weight is"):
    checkpoint.open_component(tmp_path / "p", "cc_projection")


@pytest.mark.parametrize("config, widths", [
  (dict(_class_name="CLIPCameraProjection"), (772, 768)),
  (dict(_class_name="CLIPCameraProjection", embedding_dim=8, additional_embeddings=3), (11, 8)),
  (dict(_class_name="CCProjection", _diffusers_version="0.18.2"), (772, 768)),
  (dict(_class_name="CCProjection", in_channel=12, out_channel=5), (12, 5)),
  (dict(in_features=12, out_features=5), (12, 5))])
def test_widths_of_the_projection(config, widths):
  layer = pose_layers.CCProjection.from_config(config)
  assert (layer.in_features, layer.out_features) == widths
  assert checkpoint.abstract_params(layer)[("projection", "kernel")].shape == widths
  with pytest.raises(ValueError, match="in_features=None should be a positive integer"):
    pose_layers.CCProjection.from_config({})


def listing(variants=("", ".fp16", ".fp16_ema"), projection=CAMERA):
  """The files of a published repository."""
  stems = {name if name != CAMERA else projection: stem for name, stem in WEIGHTS.items()}
  return [".gitattributes", "README.md", "model_index.json", "scheduler/scheduler_config.json",
          "feature_extractor/preprocessor_config.json", f"{projection}/zero123.py", "safety_checker/config.json",
          "safety_checker/model.safetensors", *(f"{folder}/config.json" for folder in stems),
          *(f"{folder}/{stem}{v}.safetensors" for folder, stem in stems.items() for v in variants)]


def files_of(projection):
  kind = next(kind for kind, name in zero123.PROJECTIONS.items() if name == projection)
  return zero123.files(dict(_class_name=kind))


@pytest.mark.parametrize("projection", [CAMERA, "cc_projection"])
@pytest.mark.parametrize("dtype, variant", [(jnp.float32, ""), (jnp.bfloat16, ".fp16")])
def test_fetched_files(projection, dtype, variant):
  left_out = (".gitattributes", "README.md", f"{projection}/zero123.py", "safety_checker/config.json",
              "safety_checker/model.safetensors")
  wanted = [name for name in listing((variant,), projection) if name not in left_out]
  assert sorted(hub.choose_files(listing(projection=projection), files_of(projection), dtype)) == sorted(wanted)


def test_repositories_that_will_not_do():
  bins = [name.replace(".safetensors", ".bin") if name.startswith("cc_projection") else name
          for name in listing(("",), "cc_projection")]
  assert "cc_projection/diffusion_pytorch_model.bin" in hub.choose_files(bins, files_of("cc_projection"), jnp.float32)
  others = [name.replace(".bin", ".ckpt") for name in bins]
  with pytest.raises(hub.Unavailable) as caught:
    hub.choose_files(others, files_of("cc_projection"), jnp.float32)
  assert str(caught.value) == ("cc_projection/ has no diffusion_pytorch_model.safetensors and no "
                               "diffusion_pytorch_model.bin")
  without = [name for name in listing() if not name.startswith((CAMERA, "unet"))]
  with pytest.raises(hub.Unavailable, match="^there is no unet/, no clip_camera_projection/$"):
    hub.choose_files(without, files_of(CAMERA), jnp.float32)


def test_a_download_that_was_broken_off(zero123_folders, tmp_path):
  for kind, folder in zero123_folders.items():
    assert sources.missing(folder) == []
    shutil.copytree(folder, tmp_path / kind)
  (tmp_path / KINDS[0] / "image_encoder" / "model.safetensors").unlink()
  (tmp_path / KINDS[0] / CAMERA / "config.json").unlink()
  assert sources.missing(tmp_path / KINDS[0]) == ["image_encoder/model.safetensors", f"{CAMERA}/config.json"]
  shutil.rmtree(tmp_path / KINDS[1] / "vae")
  assert sources.missing(tmp_path / KINDS[1]) == ["vae/config.json"]
