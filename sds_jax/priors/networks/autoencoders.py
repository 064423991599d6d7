"""The kinds of autoencoders that a folder `vae/` may hold, told apart by the class in config.json."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from sds_jax.priors.networks.tiny_vae import AutoencoderTiny
from sds_jax.priors.networks.vae import AutoencoderKL

KINDS: dict[str, type[AutoencoderKL] | type[AutoencoderTiny]] = {
  "AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
"""Class in config.json -> network."""


class Autoencoder:
  """Builds a network of one of KINDS; the component `vae` of a checkpoint."""

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> nn.Module:
    """Returns the network that a diffusers config.json describes; without a known class AutoencoderKL.

    Raises:
      ValueError: an option is unknown or not supported; the message has the key, its value and what is supported.
    """
    kind = config.get("_class_name")
    return KINDS.get(kind if isinstance(kind, str) else "", AutoencoderKL).from_config(config, **overrides)
