"""The supported options of a diffusers UNet2DConditionModel config.json."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sds_jax.priors.networks.config_check import Options, read_fields

_FREE = frozenset({
  "sample_size", "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos", "freq_shift",
  "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor", "norm_num_groups",
  "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim", "use_linear_projection",
  "upcast_attention", "projection_class_embeddings_input_dim", "conv_in_kernel", "conv_out_kernel",
  "addition_embed_type_num_heads", "encoder_hid_dim",
})
"""Fields that accept any value of the right type."""

_CHOICES: dict[str, tuple[Any, ...]] = {
  "act_fn": ("silu", "swish", "gelu", "relu"),
  "resnet_time_scale_shift": ("default", "scale_shift"),
  "addition_embed_type": (None, "text"),
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
  "addition_time_embed_dim": (None,),
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
      raise ValueError(f"UNet2DConditionModel config: {key}={list(value)!r} has {len(value)} values, while "
                       f"block_out_channels has {blocks}")
  depths = fields.get("transformer_layers_per_block", 1)
  if not all(isinstance(n, int) for n in per_block(depths, blocks)):
    raise ValueError(f"UNet2DConditionModel config: transformer_layers_per_block={depths!r} is not supported; "
                     "supported: an integer, or one a block")
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
  _check_text(fields)


def _check_text(fields: dict[str, Any]) -> None:
  """Checks the options of text and attention against each other."""
  width = fields.get("cross_attention_dim", 1280)
  text_dim, heads = fields.get("encoder_hid_dim") or width, fields.get("addition_embed_type_num_heads", 64)
  if fields.get("addition_embed_type") == "text" and text_dim % heads:
    raise ValueError(f"UNet2DConditionModel config: addition_embed_type_num_heads={heads!r} is not supported; "
                     f"supported: a divisor of the text's width {text_dim}")
  kinds = (*fields.get("down_block_types", ()), fields.get("mid_block_type", ""), *fields.get("up_block_types", ()))
  if not any("SimpleCrossAttn" in kind for kind in kinds):
    return
  head_dim = fields.get("attention_head_dim", 8)
  if isinstance(head_dim, tuple) and len(set(head_dim)) > 1:
    raise ValueError(f"UNet2DConditionModel config: attention_head_dim={list(head_dim)!r} is not supported with "
                     "SimpleCrossAttn blocks; supported: one head size for all blocks")
  if fields.get("cross_attention_norm") == "group_norm" and width % 32:
    raise ValueError(f"UNet2DConditionModel config: cross_attention_norm='group_norm' is not supported with "
                     f"cross_attention_dim={width}; supported: a width divisible by 32")
