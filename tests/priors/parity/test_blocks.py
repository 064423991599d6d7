"""Each block of the U-Net against the one of diffusers, in float32."""
import importlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import names
from sds_jax.priors.networks import attention, layers


def ported(module, state, *inputs):
  """The Flax parameters of a block from a torch state dict; all names must meet."""
  tree = flax.traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
  paths = names.flax_paths(tree, names.UNET)
  assert set(paths) == set(state)
  return flax.traverse_util.unflatten_dict(
    {path: jnp.asarray(names.to_flax(path, state[name].numpy())) for name, path in paths.items()})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Pair:
  """Both blocks on the same inputs; NHWC is turned for torch."""

  def __init__(self, torch, randomize, quick_jit, relative_error):
    self.torch, self.randomize, self.quick_jit, self.relative_error = torch, randomize, quick_jit, relative_error

  def error(self, ours, theirs, *inputs, call=lambda block, *inputs: block(*inputs)):
    theirs = self.randomize(self.torch, theirs)
    params = ported(ours, theirs.state_dict(), *map(jnp.asarray, inputs))
    got = self.quick_jit(ours.apply, {"params": params}, *map(jnp.asarray, inputs))
    turned = [self.torch.from_numpy(a.transpose(0, 3, 1, 2).copy() if a.ndim == 4 else a) for a in inputs]
    with self.torch.no_grad():
      expected = call(theirs, *turned).numpy()
    return self.relative_error(got, expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected)


@pytest.fixture
def pair(torch, diffusers, randomize, quick_jit, relative_error):
  return Pair(torch, randomize, quick_jit, relative_error)


def diffusers_class(module, name):
  return getattr(importlib.import_module(f"diffusers.models.{module}"), name)


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
@pytest.mark.parametrize("features, act_fn, factor", [(16, "silu", 1.), (24, "gelu", 1.5)])
def test_resnet_block(pair, shift, features, act_fn, factor):
  theirs = diffusers_class("resnet", "ResnetBlock2D")(
    in_channels=16, out_channels=features, temb_channels=10, groups=8, eps=1e-4, non_linearity=act_fn,
    time_embedding_norm=shift, output_scale_factor=factor)
  ours = layers.ResnetBlock2D(features, 8, 1e-4, act_fn, shift, factor)
  assert pair.error(ours, theirs, draw(2, 6, 4, 16), draw(2, 10, seed=1)) < 1e-5


@pytest.mark.parametrize("padding", [0, 1])
def test_downsample(pair, padding):
  theirs = diffusers_class("downsampling", "Downsample2D")(8, use_conv=True, out_channels=8, padding=padding, name="op")
  assert pair.error(layers.Downsample2D(8, padding), theirs, draw(2, 6, 4, 8)) < 1e-5


def test_upsample(pair):
  theirs = diffusers_class("upsampling", "Upsample2D")(8, use_conv=True, out_channels=8)
  assert pair.error(layers.Upsample2D(8), theirs, draw(2, 3, 5, 8)) < 1e-5


@pytest.mark.parametrize("linear, depth", [(False, 1), (True, 2)])
def test_transformer(pair, linear, depth):
  theirs = diffusers_class("transformers.transformer_2d", "Transformer2DModel")(
    num_attention_heads=2, attention_head_dim=8, in_channels=16, num_layers=depth, cross_attention_dim=10,
    norm_num_groups=4, use_linear_projection=linear)
  ours = attention.Transformer2DModel(2, depth, 4, linear)
  x = 0.01 * draw(2, 4, 3, 16)  # so small that the epsilon of the norm in front shows
  assert pair.error(ours, theirs, x, draw(2, 5, 10, seed=1),
                    call=lambda block, x, context: block(x, context, return_dict=False)[0]) < 1e-5


def test_timestep_embedding(pair):
  theirs = diffusers_class("embeddings", "TimestepEmbedding")(6, 16)
  assert pair.error(layers.TimestepEmbedding(16), theirs, draw(3, 6)) < 1e-5


@pytest.mark.parametrize("dim, flip, shift", [(8, True, 0), (9, False, 1)])
def test_sinusoids(torch, diffusers, dim, flip, shift):
  t = [0, 1, 500, 999]
  expected = diffusers_class("embeddings", "get_timestep_embedding")(torch.tensor(t), dim, flip, shift)
  np.testing.assert_allclose(layers.sinusoidal_embedding(jnp.asarray(t), dim, flip, shift), expected, atol=1e-4)
