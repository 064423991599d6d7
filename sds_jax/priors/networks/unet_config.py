"""The supported options of a diffusers UNet2DConditionModel config.json."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sds_jax.priors.networks.config_check import (FLAG, MAX_SIDE, MAX_WIDTH, ValueRule, Options, check_layers, every,
                                                  number, one_or_every, optional, read_fields, shown, whole)

_WIDTH, _LAYERS = whole(1, MAX_WIDTH), whole(1, 64)
_FREE: dict[str, ValueRule] = {
  "sample_size": optional(one_or_every(whole(1, MAX_SIDE))), "in_channels": _WIDTH, "out_channels": _WIDTH,
  "center_input_sample": FLAG, "flip_sin_to_cos": FLAG, "freq_shift": number(-1000, 1000),
  "block_out_channels": every(_WIDTH), "layers_per_block": one_or_every(_LAYERS), "downsample_padding": whole(0, 8),
  "mid_block_scale_factor": number(0), "norm_num_groups": _WIDTH, "norm_eps": number(0, 1),
  "cross_attention_dim": one_or_every(_WIDTH), "transformer_layers_per_block": one_or_every(whole(0, 64)),
  "attention_head_dim": one_or_every(_WIDTH), "use_linear_projection": FLAG, "upcast_attention": optional(FLAG),
  "projection_class_embeddings_input_dim": optional(_WIDTH), "conv_in_kernel": whole(1, 31),
  "conv_out_kernel": whole(1, 31), "addition_embed_type_num_heads": _WIDTH, "encoder_hid_dim": optional(_WIDTH),
  "addition_time_embed_dim": optional(_WIDTH),
}
"""{field of the network: legal values}."""

_CHOICES: dict[str, tuple[Any, ...]] = {
  "act_fn": ("silu", "swish", "gelu", "relu"),
  "resnet_time_scale_shift": ("default", "scale_shift"),
  "addition_embed_type": (None, "text", "text_time"),
  "class_embed_type": (None, "projection", "timestep", "simple_projection"),
  "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn"),
  "cross_attention_norm": (None, "group_norm"),
  "only_cross_attention": (False,),
  "dual_cross_attention": (False,),
  "num_class_embeds": (None,),
  "num_attention_heads": (None,),
}
"""{field of the network: supported values}."""

_CHOICES_PER_BLOCK: dict[str, tuple[str, ...]] = {
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
  "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}

_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "attention_type": ("default",),
  "class_embeddings_concat": (False,),
  "encoder_hid_dim_type": (None, "text_proj"),
  "mid_block_only_cross_attention": (None, False),
  "resnet_out_scale_factor": (1.0,),
  "resnet_skip_time_act": (False,),
  "reverse_transformer_layers_per_block": (None,),
  "time_cond_proj_dim": (None,),
  "time_embedding_act_fn": (None,),
  "time_embedding_dim": (None,),
  "time_embedding_type": ("positional",),
  "timestep_post_act": (None,),
}
"""{key that is no field: values under which the key changes nothing} (`encoder_hid_dim` alone decides whether the text
is projected, with or without `encoder_hid_dim_type`)."""

_NO_EFFECT = frozenset({"dropout"})
"""Keys without effect on the function; dropout matters to training only."""


def per_block(value: Any, blocks: int) -> tuple[Any, ...]:
  """Returns a tuple with one value a block, from one value for all blocks or one a block.

  Raises:
    ValueError: the number of values is not the number of blocks.
  """
  values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * blocks
  if len(values) != blocks:
    raise ValueError(f"{list(values)} has {len(values)} values for {blocks} blocks")
  return values


def check_unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of `unet.UNet2DConditionModel` from a parsed config.json; lists become tuples.

  Raises:
    ValueError: a value is not supported; the message has the key, the value and the supported values.
  """
  options = Options("UNet2DConditionModel", _FREE, _CHOICES, _CHOICES_PER_BLOCK, _NEUTRAL, _NO_EFFECT)
  fields = read_fields(options, config)
  if config.get("encoder_hid_dim_type") and not config.get("encoder_hid_dim"):
    raise ValueError("UNet2DConditionModel config: encoder_hid_dim=None is not supported with encoder_hid_dim_type="
                     f"{config['encoder_hid_dim_type']!r}; supported: the width of the text before its projection")
  _check_together(fields)
  return fields


def _check_together(fields: dict[str, Any]) -> None:
  blocks = len(fields.get("block_out_channels", (0,) * 4))
  for key in ("down_block_types", "up_block_types", "layers_per_block", "attention_head_dim", "cross_attention_dim",
              "transformer_layers_per_block"):
    value = fields.get(key)
    if isinstance(value, tuple) and len(value) != blocks:
      raise ValueError(f"UNet2DConditionModel config: {key}={shown(list(value))} has {len(value)} values, while "
                       f"block_out_channels has {blocks}")
  layers, depths = fields.get("layers_per_block", 2), fields.get("transformer_layers_per_block", 1)
  check_layers("UNet2DConditionModel", sum((2 * n + 1) * (1 + depth) for n, depth in zip(
    per_block(layers, blocks), per_block(depths, blocks))), layers_per_block=layers,
    transformer_layers_per_block=depths)
  widths, groups = fields.get("block_out_channels", (320, 640, 1280, 1280)), fields.get("norm_num_groups", 32)
  if any(width % groups for width in widths):
    raise ValueError(f"UNet2DConditionModel config: norm_num_groups={groups!r} is not supported with "
                     f"block_out_channels={list(widths)!r}; supported: a divisor of them all")
  widths = fields.get("cross_attention_dim")
  if isinstance(widths, tuple):
    if len(set(widths)) > 1:
      raise ValueError(f"UNet2DConditionModel config: cross_attention_dim={list(widths)!r} is not supported; "
                       "supported: one width for all blocks")
    fields["cross_attention_dim"] = widths[0]
  if fields.get("class_embed_type") in ("projection", "simple_projection"):
    if not fields.get("projection_class_embeddings_input_dim"):
      raise ValueError("UNet2DConditionModel config: projection_class_embeddings_input_dim=None is not supported with "
                       f"class_embed_type={fields['class_embed_type']!r}; supported: the length of the class vector")
  if fields.get("addition_embed_type") == "text_time":
    _check_text_time(fields)
  _check_text(fields)


def _check_text_time(fields: dict[str, Any]) -> None:
  """Checks the widths of the added embedding of SDXL: the pooled text, and six numbers as sinusoids."""
  dim, width = fields.get("addition_time_embed_dim"), fields.get("projection_class_embeddings_input_dim")
  if not dim:
    raise ValueError("UNet2DConditionModel config: addition_time_embed_dim=None is not supported with "
                     "addition_embed_type='text_time'; supported: the number of sinusoids of a size")
  if not width or width <= 6 * dim:
    raise ValueError(f"UNet2DConditionModel config: projection_class_embeddings_input_dim={width!r} is not supported "
                     f"with addition_embed_type='text_time' and addition_time_embed_dim={dim}; supported: 6 times "
                     f"{dim}, and the width of the pooled text")


def _check_text(fields: dict[str, Any]) -> None:
  """Checks the options of text and attention against each other."""
  width = fields.get("cross_attention_dim", 1280)
  text_dim, heads = fields.get("encoder_hid_dim") or width, fields.get("addition_embed_type_num_heads", 64)
  if fields.get("addition_embed_type") == "text" and text_dim % heads:
    raise ValueError(f"UNet2DConditionModel config: addition_embed_type_num_heads={heads!r} is not supported; "
                     f"supported: a divisor of the text's width {text_dim}")
  kinds = (*fields.get("down_block_types", ()), fields.get("mid_block_type", ""), *fields.get("up_block_types", ()))
  _check_heads(fields)
  if not any("SimpleCrossAttn" in kind for kind in kinds):
    return
  head_dim = fields.get("attention_head_dim", 8)
  if isinstance(head_dim, tuple) and len(set(head_dim)) > 1:
    raise ValueError(f"UNet2DConditionModel config: attention_head_dim={list(head_dim)!r} is not supported with "
                     "SimpleCrossAttn blocks; supported: one head size for all blocks")
  if fields.get("cross_attention_norm") == "group_norm" and width % 32:
    raise ValueError(f"UNet2DConditionModel config: cross_attention_norm='group_norm' is not supported with "
                     f"cross_attention_dim={width}; supported: a width divisible by 32")


def _check_heads(fields: dict[str, Any]) -> None:
  """Checks that the heads of every block with attention divide its width."""
  widths = fields.get("block_out_channels", (320, 640, 1280, 1280))
  heads = per_block(fields.get("attention_head_dim", 8), len(widths))
  down, up = fields.get("down_block_types", ()), fields.get("up_block_types", ())
  middle = fields.get("mid_block_type", "UNetMidBlock2DCrossAttn")
  blocks = [*zip(down, widths, heads), *zip(up, widths[::-1], heads[::-1]), (middle, widths[-1], heads[-1])]
  for kind, width, parts in blocks:
    if "CrossAttn" in kind and width % parts:
      raise ValueError(f"UNet2DConditionModel config: attention_head_dim={shown(fields.get('attention_head_dim', 8))} "
                       f"is not supported with block_out_channels={list(widths)!r}; supported: a divisor of the width "
                       "of every block with attention")
