"""U-Nets of published widths against diffusers on small images, with random weights: `pytest -m full_size`.

Each holds one network of torch and then one of ours; 8 GiB of memory do for all but SDXL, which takes 12 GiB in float32
and more than 15 GiB in bfloat16, where XLA makes copies in float32 on a CPU.
"""
import gc

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.families.deepfloyd import IF_M_UNET
from sds_jax.priors.families.sdxl import SDXL_UNET
from sds_jax.priors.families.stable_diffusion import SD1_UNET, SD2_UNET
from sds_jax.priors.loading import checkpoint, names
from sds_jax.priors.networks.unet import UNet2DConditionModel

pytestmark = [pytest.mark.full_size, pytest.mark.timeout(3600)]


PARAMETERS = {1024: 865_910_724, 2048: 2_567_463_684}
"""{width of the text: number of parameters}."""


def their_prediction(torch, diffusers, config, inputs):
  """(prediction [1, H, W, C], {name: array of the weights}); torch's network is gone afterwards."""
  torch.manual_seed(0)
  model = diffusers.UNet2DConditionModel(**config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:  # norms begin as the identity, which would hide mistakes
        parameter.add_(0.1 * torch.randn(parameter.shape))
    sample, t, text, *added = map(torch.from_numpy, inputs)
    added = dict(zip(("text_embeds", "time_ids"), added)) or None
    prediction = model(sample.permute(0, 3, 1, 2), t, text, added_cond_kwargs=added).sample
    prediction = prediction.permute(0, 2, 3, 1).numpy()
  return prediction, {name: value.numpy() for name, value in model.state_dict().items()}


def our_params(model, state):
  """The weights as a Flax tree; each leaves `state` as soon as it is copied."""
  paths = names.flax_paths(checkpoint.abstract_params(model), names.UNET)
  assert set(paths) == set(state)
  return flax.traverse_util.unflatten_dict(
    {path: jnp.array(names.to_flax(path, state.pop(name))) for name, path in paths.items()})


def in_half(params, dtype):
  """The parameters in 16 bits; those of 32 bits are gone afterwards."""
  flat = flax.traverse_util.flatten_dict(params)
  params.clear()
  return flax.traverse_util.unflatten_dict({path: flat.pop(path).astype(dtype) for path in list(flat)})


@pytest.mark.parametrize("config", [SD1_UNET, SD2_UNET, IF_M_UNET, SDXL_UNET],
                         ids=["SD-1.5", "SD-2.1", "IF-I-M", "SDXL"])
def test_full_size_unet(torch, diffusers, figures, config):
  ours = UNet2DConditionModel.from_config(config)
  rng = np.random.default_rng(0)
  inputs = (rng.normal(size=(1, 32, 32, ours.in_channels)).astype(np.float32), np.array([321]),
            rng.normal(size=(1, 77, ours.text_dim)).astype(np.float32))
  if ours.pooled_dim:
    inputs += (rng.normal(size=(1, ours.pooled_dim)).astype(np.float32),
               np.array([[1024, 768, 0, 64, 512, 512]], np.float32))
  expected, state = their_prediction(torch, diffusers, config, inputs)
  gc.collect()
  params = our_params(ours, state)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count == PARAMETERS.get(ours.cross_attention_dim, count)
  inputs = (*inputs[:3], None, *inputs[3:])  # no class labels
  assert figures("float32", jax.jit(ours.apply)({"params": params}, *inputs), expected) < 1e-4
  # float16 first: its values are near enough to those of float32 to be rounded again.
  for dtype, bound in ((jnp.float16, 4e-3), (jnp.bfloat16, 2e-2)):
    params = in_half(params, dtype)
    half = jax.jit(ours.clone(dtype=dtype).apply)({"params": params}, *inputs)
    assert half.dtype == dtype and figures(dtype.__name__, half, expected) < bound
