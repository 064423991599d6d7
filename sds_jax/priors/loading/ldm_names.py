"""Names and layouts of parameters in single-file checkpoints (latent diffusion, OpenCLIP, OpenAI CLIP).

A name of diffusers or transformers becomes a name of the original code by a rule for each network. The names were
compared with the conversion scripts of diffusers, and the sizes of rebuilt files with those of the published ones.

  part of a file          prefix
  U-Net                   model.diffusion_model.
  its averages (EMA)      model_ema.              without dots
  autoencoder             first_stage_model.
  text, SD 1.x            cond_stage_model.transformer.
  text, SD 2.x            cond_stage_model.model.
  text, SDXL              conditioner.embedders.0.transformer. and conditioner.embedders.1.model.
  image, Zero-1-to-3      cond_stage_model.model.visual.
"""
from __future__ import annotations

from collections.abc import Callable
import dataclasses
import re

import numpy as np


@dataclasses.dataclass(frozen=True)
class LdmName:
  """A parameter in a single file.

  Attributes:
    key: the name in the file, without prefix.
    third: 0, 1 or 2: the part of a tensor of queries, keys and values, stacked by rows; None: the whole tensor.
    transposed: whether the file has the transpose.
  """
  key: str
  third: int | None = None
  transposed: bool = False

  def part(self, array: np.ndarray) -> np.ndarray:
    """Returns the parameter from the tensor of the file."""
    if self.third is not None:
      array = np.split(array, 3)[self.third]
    return array.T if self.transposed else array

  def part_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the parameter from the shape of the tensor in the file."""
    if self.third is not None and shape:
      shape = (shape[0] // 3 if shape[0] % 3 == 0 else shape[0], *shape[1:])
    return shape[::-1] if self.transposed else shape


Rule = Callable[[str], LdmName]
"""(name in diffusers or transformers) -> the name in the file, without prefix."""

_ENDS = {
  "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1":
  "time_embed.0", "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
  "add_embedding.linear_2": "label_emb.0.2", "class_embedding.linear_1": "camera_embed.0",
  "class_embedding.linear_2": "camera_embed.2"}
_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_rule(layers: int, attending_up: frozenset[int]) -> Rule:
  """Returns the rule of a U-Net.

  Args:
    layers: layers_per_block.
    attending_up: numbers of the up blocks with attention.
  """
  def resnet(kind: str, rest: str) -> str:
    module, _, leaf = rest.rpartition(".")
    return f"{_RESNET[module]}.{leaf}" if kind == "resnets" else rest

  def rule(name: str) -> LdmName:
    module, _, leaf = name.rpartition(".")
    if module in _ENDS:
      return LdmName(f"{_ENDS[module]}.{leaf}")
    if match := _MIDDLE.fullmatch(name):
      kind, number, rest = match[1], int(match[2]), match[3]
      return LdmName(f"middle_block.{2 * number if kind == 'resnets' else 1}.{resnet(kind, rest)}")
    match = _BLOCK.fullmatch(name)
    side, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    # Each block of the file is one layer; the first input block is conv_in.
    first = block * (layers + 1) + (side == "down")
    if kind == "downsamplers":
      return LdmName(f"input_blocks.{first + layers}.0.op.{leaf}")
    if kind == "upsamplers":
      return LdmName(f"output_blocks.{first + layers}.{2 if block in attending_up else 1}.conv.{leaf}")
    place = 0 if kind == "resnets" else 1
    return LdmName(f"{'input' if side == 'down' else 'output'}_blocks.{first + number}.{place}.{resnet(kind, rest)}")

  return rule


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_rule(blocks: int) -> Rule:
  """Returns the rule of an autoencoder with so many blocks."""
  def rule(name: str) -> LdmName:
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"mid_block\.attentions\.0\.([\w.]+)\.(\w+)",
                  lambda match: f"mid.attn_1.{_VAE_ATTENTION[match[1]]}.{match[2]}", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    # The original decoder numbers its blocks from the image to the latents.
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{blocks - 1 - int(match[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{blocks - 1 - int(match[1])}.upsample", name)
    return LdmName(name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out"))

  return rule


_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
          "self_attn.out_proj": "attn.out_proj"}
_HEADS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_CLIP = {
  "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
  "text_model.embeddings.position_embedding.weight": "positional_embedding",
  "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias",
  "vision_model.embeddings.class_embedding": "class_embedding",
  "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
  "vision_model.embeddings.position_embedding.weight": "positional_embedding",
  "vision_model.pre_layrnorm.weight": "ln_pre.weight", "vision_model.pre_layrnorm.bias": "ln_pre.bias",
  "vision_model.post_layernorm.weight": "ln_post.weight", "vision_model.post_layernorm.bias": "ln_post.bias"}
_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "proj"}
_CLIP_LAYER = re.compile(r"(?:text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def clip_rule(name: str) -> LdmName:
  """Returns the name in the layout of OpenCLIP and OpenAI's CLIP, whose queries, keys and values are one tensor."""
  if name in _CLIP:
    return LdmName(_CLIP[name])
  if name in _PROJECTIONS:
    return LdmName(_PROJECTIONS[name], transposed=True)
  match = _CLIP_LAYER.fullmatch(name)
  layer, module, leaf = match[1], match[2], match[3]
  if module in _HEADS:
    return LdmName(f"transformer.resblocks.{layer}.attn.in_proj_{leaf}", third=_HEADS.index(module))
  return LdmName(f"transformer.resblocks.{layer}.{_LAYER[module]}.{leaf}")


def same_rule(name: str) -> LdmName:
  """Returns the name itself, for parts of a file that have the names of transformers."""
  return LdmName(name)


def average_key(key: str) -> str:
  """Returns where training code keeps the average of a U-Net's parameter, by its name without prefix.

  >>> average_key("input_blocks.0.0.weight")
  'model_ema.diffusion_modelinput_blocks00weight'
  """
  return "model_ema." + f"diffusion_model.{key}".replace(".", "")
