"""Priors of published kinds: Stable Diffusion's latents and IF's pixels, in folders of tiny networks."""
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from sds_jax.priors import prior as prior_lib, sample, sources, spaces
from sds_jax.priors.loading import checkpoint
from sds_jax.priors.loading.files import CheckpointError

SCALE = 0.18215
IF_UNET = dict(
  _class_name="UNet2DConditionModel", sample_size=8, in_channels=3, out_channels=6, act_fn="gelu",
  down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"], layers_per_block=1,
  up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"], block_out_channels=[16, 32],
  mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=32, cross_attention_norm="group_norm",
  encoder_hid_dim=12, encoder_hid_dim_type="text_proj", addition_embed_type="text", addition_embed_type_num_heads=2,
  attention_head_dim=8, norm_num_groups=8, resnet_time_scale_shift="scale_shift")
T5 = dict(model_type="t5", vocab_size=8, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2,
          feed_forward_proj="gated-gelu")
IF_SCHEDULER = dict(
  _class_name="DDPMScheduler", num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon",
  variance_type="learned_range", thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5)


@pytest.fixture(scope="module")
def latent(sd_folder):
  return prior_lib.build(sd_folder)


@pytest.fixture(scope="module")
def vae(sd_folder):
  """(module, params), read for itself"""
  return checkpoint.read_component(sd_folder / "vae", "vae")


@pytest.fixture(scope="module")
def if_folder(random_params, tmp_path_factory):
  folder = tmp_path_factory.mktemp("if")
  for name, kind, config in (("unet", "unet", IF_UNET), ("text_encoder", "t5", T5)):
    params = random_params(checkpoint.COMPONENTS[kind].network.from_config(config))
    checkpoint.write_component(folder / name, kind, config, params, dtype=jnp.float32)
  pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "\u2581red", "\u2581cube", "s"]
  backend = tokenizers.Tokenizer(models.Unigram([(piece, -1.0 - i) for i, piece in enumerate(pieces)], unk_id=2))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  for name in ("tokenizer", "scheduler"):
    (folder / name).mkdir()
  backend.save(str(folder / "tokenizer" / "tokenizer.json"))
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(IF_SCHEDULER))
  (folder / "model_index.json").write_text(json.dumps(dict(_class_name="IFPipeline")))
  return folder


def pictures(size, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(size=(2, size, size, 3)), jnp.float32)


def test_facts(latent):
  prior, params = latent
  assert (prior.image_size, prior.x_shape, prior.x_bound) == (16, (8, 8, 4), None)
  assert (prior.camera_dim, prior.vocabulary, prior.prediction_type) == (0, None, "epsilon")
  assert list(params) == ["unet", "vae"]
  assert abs(float(prior.schedule.alpha[-1]) - 0.068) < 1e-3  # of Stable Diffusion: sqrt(0.0047)


def test_encode_and_decode(latent, vae):
  """Scaled once on the way in and once on the way out, with the noise of the key."""
  (prior, params), (model, weights) = latent, vae
  image, key = pictures(16), jax.random.key(3)
  mean, logvar = jax.jit(lambda x: model.apply({"params": weights}, x, method="encode"))(2 * image - 1)
  noise = jax.random.normal(key, mean.shape)
  encode, decode = jax.jit(prior.encode), jax.jit(prior.decode)
  x = encode(params, image, key)
  np.testing.assert_allclose(x, SCALE * (mean + np.exp(np.asarray(logvar) / 2) * noise), rtol=1e-4, atol=1e-4)
  assert float(jnp.abs(x - encode(params, image, jax.random.key(4))).max()) > 1e-3
  decoded = jax.jit(lambda z: model.apply({"params": weights}, z, method="decode"))(mean)
  assert 0.05 < float(jnp.mean(jnp.abs(decoded) < 1))  # or the clipping would hide everything
  np.testing.assert_allclose(decode(params, SCALE * mean), np.clip((np.asarray(decoded) + 1) / 2, 0, 1), atol=1e-4)


def test_images_are_resized_bilinearly(latent):
  prior, params = latent
  row = jnp.broadcast_to(jnp.asarray([0., 1.])[None, None, :, None], (1, 2, 2, 3))
  np.testing.assert_allclose(spaces.resized(row, 4)[0, 1, :, 2], [0, 0.25, 0.75, 1], atol=1e-6)
  encode, key = jax.jit(prior.encode), jax.random.key(0)
  small = pictures(4)
  np.testing.assert_allclose(encode(params, small, key), encode(params, spaces.resized(small, 16), key), atol=1e-5)
  with pytest.raises(ValueError, match=r"image has shape \(1, 4, 6, 3\), expected square images"):
    prior.encode(params, jnp.zeros((1, 4, 6, 3)), key)


def test_gradient_flows_through_encode(latent):
  """Along a random direction it is the difference quotient."""
  prior, params = latent
  image, key = pictures(6), jax.random.key(0)
  c, direction = (jnp.asarray(np.random.default_rng(i).normal(size=s), jnp.float32)
                  for i, s in enumerate([(2, 8, 8, 4), image.shape]))
  both = jax.jit(jax.value_and_grad(lambda picture: jnp.sum(c * prior.encode(params, picture, key))))
  grad, h = both(image)[1], 1e-2
  quotient = (both(image + h * direction)[0] - both(image - h * direction)[0]) / (2 * h)
  assert abs(float(jnp.sum(grad * direction)) - float(quotient)) < 0.02 * float(jnp.linalg.norm(grad))


def test_rematerialization_is_asked_for(sd_folder, latent):
  image, key = jnp.zeros((1, 16, 16, 3)), jax.random.key(0)
  for vae_remat in (False, True):
    prior, params = prior_lib.build(sd_folder, vae_remat=vae_remat) if vae_remat else latent
    assert ("prevent_cse" in str(jax.make_jaxpr(prior.encode)(params, image, key))) == vae_remat


def test_half_precision_stays_inside(sd_folder):
  prior, params = prior_lib.build(sd_folder, dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
  image, x, key = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 8, 8, 4)), jax.random.key(0)
  text = prior.embed(["a red cube"])["text"]
  assert (text.dtype, text.shape) == (jnp.float32, (1, 8, 12))
  for function, *args in ((prior.encode, image, key), (prior.decode, x),
                          (prior.denoise, x, jnp.zeros(1, jnp.int32), dict(text=text))):
    assert jax.eval_shape(function, params, *args).dtype == jnp.float32


@pytest.mark.parametrize("kind, expected", [("epsilon", "v"), ("v_prediction", "alpha v + sigma z")])
def test_learned_variance_is_left_out(latent, kind, expected):
  space = spaces.pixel_space(4)
  unet = SimpleNamespace(apply=lambda variables, z, t, text, labels: jnp.concatenate([0.5 * z, 9 + 0 * z], axis=-1))
  scheduler = dict(IF_SCHEDULER, prediction_type=kind)
  prior = prior_lib.make_prior(sources.Source("x", None), space, unet, scheduler)
  z, t = jnp.ones((1, 4, 4, 3)), jnp.asarray([400])
  eps = prior.denoise(dict(unet=None), z, t, dict(text=None))
  alpha, sigma = float(prior.schedule.alpha[400]), float(prior.schedule.sigma[400])
  np.testing.assert_allclose(eps, np.full((1, 4, 4, 3), 0.5 if expected == "v" else 0.5 * alpha + sigma), rtol=1e-5)


def test_if(if_folder):
  prior, params = prior_lib.build(if_folder)
  assert (prior.image_size, prior.x_shape, prior.x_bound, list(params)) == (8, (8, 8, 3), 1, ["unet"])
  text = prior.embed(["a red cube", ""])["text"]
  assert text.shape == (2, 77, 12) and text.dtype == jnp.float32
  image = pictures(8)
  x = prior.encode(params, image, jax.random.key(0))
  np.testing.assert_allclose(x, 2 * image - 1, atol=1e-6)
  np.testing.assert_allclose(prior.decode(params, x), image, atol=1e-6)
  cond = dict(text=text)
  assert jax.eval_shape(prior.denoise, params, x, jnp.zeros(2, jnp.int32), cond).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("kind, size", [("sd_folder", 16), ("if_folder", 8)])
def test_sample_command(request, tmp_path, kind, size):
  folder = request.getfixturevalue(kind)
  sample.main([f"--prior={folder}", "--prompt=a red cube", f"--out={tmp_path / 'x.png'}", "--steps=2", "--num=2"])
  with Image.open(tmp_path / "x.png") as image:
    assert image.size == (2 * size, size)
    assert np.asarray(image).std() > 0


@pytest.mark.parametrize("change, expected", [
  (dict(in_channels=9), "the U-Net's in_channels is 9, expected 4"),
  (dict(out_channels=3), "the U-Net's out_channels is 3, expected 4"),
  (dict(cross_attention_dim=16), "the text encoder's width is 12, expected 16"),
  (dict(sample_size=[8, 4]), r"sample_size=\(8, 4\) should be a positive integer, .* twice")])
def test_parts_that_don_t_fit(sd_folder, tmp_path, random_params, change, expected):
  for path in sd_folder.iterdir():
    if path.name != "unet":
      (tmp_path / path.name).symlink_to(path)
  config = json.loads((sd_folder / "unet" / "config.json").read_text()) | change
  config.update(down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"],
                block_out_channels=[8])
  params = random_params(checkpoint.COMPONENTS["unet"].network.from_config(config))
  checkpoint.write_component(tmp_path / "unet", "unet", config, params)
  with pytest.raises(CheckpointError, match=expected):
    prior_lib.build(tmp_path)


def test_a_missing_part(sd_folder, tmp_path):
  for path in sd_folder.iterdir():
    if path.name != "vae":
      (tmp_path / path.name).symlink_to(path)
  with pytest.raises(CheckpointError, match="vae does not exist"):
    prior_lib.build(tmp_path)
