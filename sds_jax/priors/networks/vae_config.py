"""The supported options of a diffusers AutoencoderKL config.json."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sds_jax.priors.networks.config_check import Options, read_fields

from sds_jax.priors.networks.layers import ACTIVATIONS

_FREE = frozenset({
  "in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
  "sample_size", "scaling_factor", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention", "force_upcast",
})
"""Fields that accept any value of the right type."""

_CHOICES: dict[str, tuple[Any, ...]] = {
  "act_fn": tuple(name for name in ACTIVATIONS if name != "quick_gelu"),
}
"""{field of the network: supported values}."""

_CHOICES_PER_BLOCK: dict[str, tuple[str, ...]] = {
  "down_block_types": ("DownEncoderBlock2D",),
  "up_block_types": ("UpDecoderBlock2D",),
}

_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "shift_factor": (None, 0.),
  "latents_mean": (None,),
  "latents_std": (None,),
}
"""{key that is no field: values under which the key changes nothing}."""


def check_vae_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of `vae.AutoencoderKL` from a parsed config.json; lists become tuples.

  Raises:
    ValueError: a value is not supported; the message has the key, the value and the supported values.
  """
  fields = read_fields(Options("AutoencoderKL", _FREE, _CHOICES, _CHOICES_PER_BLOCK, _NEUTRAL), config)
  _check_blocks(fields)
  return fields


def _check_blocks(fields: Mapping[str, Any]) -> None:
  channels, layers = fields.get("block_out_channels", (64,)), fields.get("layers_per_block", 1)
  for key in ("down_block_types", "up_block_types"):
    kinds = fields.get(key, ("",))
    if len(kinds) != len(channels):
      raise ValueError(f"AutoencoderKL config: {key}={list(kinds)!r} has {len(kinds)} values, while "
                       f"block_out_channels has {len(channels)}")
  if not isinstance(layers, int):
    raise ValueError(f"AutoencoderKL config: layers_per_block={layers!r} is not supported; supported: an integer")
  groups = fields.get("norm_num_groups", 32)
  if any(width % groups for width in channels):
    raise ValueError(f"AutoencoderKL config: norm_num_groups={groups!r} is not supported with block_out_channels="
                     f"{list(channels)!r}; supported: a divisor of them all")
