"""Names of a ControlNet's parameters in the original single files, as `control_v11f1p_sd15_depth.pth`.

The original files (github.com/lllyasviel/ControlNet) number the blocks of the encoder one after the other; diffusers
numbers them within each resolution.
"""
from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import re

from sds_jax.priors.loading import names
from sds_jax.priors.networks.controlnet import ControlNetModel

PREFIX = "control_model."
"""Prefix of the ControlNet's parameters; absent in some files."""

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
_PLAIN = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
          "time_embedding.linear_2": "time_embed.2", "controlnet_cond_embedding.conv_in": "input_hint_block.0",
          "controlnet_mid_block": "middle_block_out.0"}
_OTHERS = ("model", "model_ema", "cond_stage_model", "first_stage_model")
"""Other networks of a file that holds a whole Stable Diffusion beside the ControlNet."""
_BUFFERS = ("betas", "alphas_*", "sqrt_*", "log_one_minus_*", "posterior_*", "logvar", "lvlb_weights", "scale_factor")


def original_table(network: ControlNetModel, paths: Iterable[names.Path]) -> names.NameTable:
  """Returns the table of names of an original file.

  Args:
    network: the network, whose layers decide the numbers of blocks.
    paths: Flax paths of all its parameters.
  """
  plain = [names.checkpoint_name(path, names.UNET) for path in paths]
  ignored = frozenset(f"{PREFIX}{pattern}" for pattern in (*(f"{other}.*" for other in _OTHERS), *_BUFFERS))
  return dataclasses.replace(names.UNET, prefix=PREFIX, ignored=ignored, renamed={
    name: PREFIX + original_name(name, network) for name in plain})


def original_name(name: str, network: ControlNetModel) -> str:
  """Returns the name in an original file, without PREFIX, of a parameter with diffusers' name.

  >>> original_name("down_blocks.1.resnets.0.conv1.weight", ControlNetModel())
  'input_blocks.4.0.in_layers.2.weight'
  """
  module, _, leaf = name.rpartition(".")
  if module in _PLAIN:
    return f"{_PLAIN[module]}.{leaf}"
  stages = len(network.conditioning_embedding_out_channels)
  if module == "controlnet_cond_embedding.conv_out":
    return f"input_hint_block.{4 * stages - 2}.{leaf}"
  # Activations count in the original: convolutions have even numbers.
  if match := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", module):
    return f"input_hint_block.{2 * int(match[1]) + 2}.{leaf}"
  if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)", module):
    return f"zero_convs.{match[1]}.0.{leaf}"
  if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module):
    place = 2 * int(match[2]) if match[1] == "resnets" else 1
    return f"middle_block.{place}.{_RESNET.get(match[3], match[3])}.{leaf}"
  match = re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)", module)
  block, kind, layer, inner = int(match[1]), match[2], int(match[3]), match[4]
  layers = network.layers_per_block
  first = 1 + block * (layers + 1)
  if kind == "downsamplers":
    return f"input_blocks.{first + layers}.0.op.{leaf}"
  part = f"0.{_RESNET[inner]}" if kind == "resnets" else f"1.{inner}"
  return f"input_blocks.{first + layer}.{part}.{leaf}"
