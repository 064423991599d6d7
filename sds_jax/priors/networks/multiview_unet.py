"""MVDream's U-Net (arXiv:2308.16512) by the config.json of its published folder.

The function is that of Stable Diffusion 2's U-Net, with the camera as class embedding and with self-attention over the
tokens of all views of an object. The keys of the config are those of latent diffusion's code.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sds_jax.priors.networks.config_check import (MAX_SIDE, MAX_WIDTH, Options, ValueRule, every, optional, read_fields,
                                                  shown, whole)
from sds_jax.priors.networks.unet import UNet2DConditionModel

VIEWS = 4
"""Number of views of an object that the published network was trained on together."""

_NAME = "MultiViewUNetModel"
_WIDTH = whole(1, MAX_WIDTH)
_RATES = ValueRule("a list of factors of the resolution, powers of 2", lambda value: (
  isinstance(value, (list, tuple)) and len(value) <= 16 and all(type(rate) is int and rate > 0 for rate in value)))
_OPTIONS = Options(
  _NAME,
  free=dict(in_channels=_WIDTH, out_channels=_WIDTH, model_channels=_WIDTH, num_res_blocks=whole(1, 64),
            attention_resolutions=_RATES, channel_mult=every(whole(1, 64)), num_head_channels=_WIDTH,
            context_dim=_WIDTH, transformer_depth=whole(1, 64), camera_dim=_WIDTH, image_size=optional(
              whole(1, MAX_SIDE))),
  choices={}, choices_per_block={},
  neutral=dict(conv_resample=(True,), dims=(2,), num_classes=(None,), num_heads=(-1, None),
               num_heads_upsample=(-1, None), use_scale_shift_norm=(False,), resblock_updown=(False,),
               n_embed=(None,), num_attention_blocks=(None,), adm_in_channels=(None,), use_spatial_transformer=(True,),
               use_linear_in_transformer=(True,)),
  no_effect=frozenset({"dropout", "use_checkpoint", "legacy", "ip_weight"}))
_DEFAULTS = dict(channel_mult=(1, 2, 4, 8), transformer_depth=1, image_size=32)
_NEEDED = ("in_channels", "out_channels", "model_channels", "num_res_blocks", "attention_resolutions",
           "num_head_channels", "context_dim", "camera_dim")


def is_of_diffusers(config: Mapping[str, Any]) -> bool:
  """Returns whether a config.json has the keys of diffusers' U-Net, with the camera as its class embedding."""
  return config.get("_class_name") == "UNet2DConditionModel"


class MultiViewUNetModel:
  """Builds the network from a config of MVDream's own keys, or of diffusers'."""

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> UNet2DConditionModel:
    """Returns the network that a config.json describes.

    Args:
      config: the parsed config.json.
      **overrides: fields that no config.json has (`dtype`, `attention_implementation`).

    Raises:
      ValueError: an option is unknown, missing, or would change the function in a way that isn't supported; the message
        has the key, its value and what is supported.
    """
    overrides = {"views": VIEWS, **overrides}
    if is_of_diffusers(config):
      return UNet2DConditionModel.from_config(config, **overrides)
    if (kind := config.get("_class_name", _NAME)) != _NAME:
      raise ValueError(f"{_NAME} config: _class_name={shown(kind)} is not supported; supported: {_NAME!r} and "
                       "'UNet2DConditionModel'")
    if config.get("ip_dim"):
      raise ValueError(f"{_NAME} config: ip_dim={shown(config['ip_dim'])} is not supported; supported: 0 (MVDream; "
                       "ImageDream, which sees a photo, is not supported)")
    fields = _DEFAULTS | read_fields(_OPTIONS, {key: value for key, value in config.items() if key != "ip_dim"})
    if lacking := [key for key in _NEEDED if fields.get(key) is None]:
      raise ValueError(f"{_NAME} config: {lacking[0]} is missing")
    return UNet2DConditionModel.from_config(_as_diffusers(fields), **overrides)


def _as_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the config of the same network by diffusers' keys."""
  widths = [factor * fields["model_channels"] for factor in fields["channel_mult"]]
  attends = [2**level in fields["attention_resolutions"] for level in range(len(widths))]
  down = ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends]
  up = ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)]
  if odd := [width for width in widths if width % fields["num_head_channels"]]:
    raise ValueError(f"{_NAME} config: num_head_channels={fields['num_head_channels']} is not supported with a width "
                     f"of {odd[0]}; supported: a divisor of every width")
  return dict(
    sample_size=fields["image_size"], in_channels=fields["in_channels"], out_channels=fields["out_channels"],
    block_out_channels=widths, layers_per_block=fields["num_res_blocks"], down_block_types=down, up_block_types=up,
    # Numbers of heads, whatever diffusers' key says.
    attention_head_dim=[width // fields["num_head_channels"] for width in widths],
    cross_attention_dim=fields["context_dim"], transformer_layers_per_block=fields["transformer_depth"],
    use_linear_projection=True, class_embed_type="projection",
    projection_class_embeddings_input_dim=fields["camera_dim"])
