"""The supported options of a diffusers AutoencoderKL config.json."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sds_jax.priors.networks.config_check import (FLAG, MAX_SIDE, MAX_WIDTH, ValueRule, Options, check_layers, every,
                                                  number, one_or_every, optional, read_fields, whole)
from sds_jax.priors.networks.layers import ACTIVATIONS

_WIDTH = whole(1, MAX_WIDTH)
_FREE: dict[str, ValueRule] = {
  "in_channels": _WIDTH, "out_channels": _WIDTH, "latent_channels": _WIDTH, "block_out_channels": every(_WIDTH),
  "layers_per_block": whole(1, 64), "norm_num_groups": _WIDTH,
  "sample_size": optional(one_or_every(whole(1, MAX_SIDE))), "scaling_factor": number(0),
  "use_quant_conv": FLAG, "use_post_quant_conv": FLAG, "mid_block_add_attention": FLAG, "force_upcast": optional(FLAG),
}
"""{field of the network: legal values}."""

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
  # Before the network is traced, which takes milliseconds a layer.
  check_layers("AutoencoderKL", len(channels) * (2 * layers + 1), layers_per_block=layers,
               block_out_channels=list(channels))
  groups = fields.get("norm_num_groups", 32)
  # Checked here, because tracing would name a layer and not the key.
  if any(width % groups for width in channels):
    raise ValueError(f"AutoencoderKL config: norm_num_groups={groups!r} is not supported with block_out_channels="
                     f"{list(channels)!r}; supported: a divisor of them all")
