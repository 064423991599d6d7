"""Configurations of the networks in a single-file checkpoint, from the names and shapes of its tensors.

A single file has no config.json. The original code fixes what shapes do not tell: groups of 32 channels in every
normalization, 8 heads in the U-Net of Stable Diffusion 1 and heads of 64 channels in later ones, and 64 channels for
each head of the text encoders.
"""
from __future__ import annotations

from collections.abc import Mapping
import math
import re
from typing import Any

from sds_jax.priors.loading.files import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
"""{name of a tensor below the network's prefix: shape}."""
_HEAD = 64


def unet_config(shapes: Shapes) -> dict[str, Any]:
  """Returns the config.json of a U-Net by its original names, without `sample_size`.

  Raises:
    CheckpointError: the blocks are not those of a U-Net of latent diffusion.
  """
  halvings, last = _numbers(shapes, r"input_blocks\.(\d+)\.0\.op\.weight"), _numbers(shapes, r"input_blocks\.(\d+)\.")
  blocks = len(halvings) + 1
  layers = halvings[0] - 1 if halvings else last[-1] if last else 0
  if not 0 < layers or last != list(range(blocks * (layers + 1))):
    raise CheckpointError(f"its U-Net has {len(last)} input blocks, which is no form of latent diffusion's")
  firsts = [1 + block * (layers + 1) for block in range(blocks)]
  widths = [_shape(shapes, f"input_blocks.{first}.0.out_layers.3.weight", 4)[0] for first in firsts]
  depths = [_depth(shapes, f"input_blocks.{first}.1") for first in firsts]
  up = [_depth(shapes, f"output_blocks.{block * (layers + 1)}.1") for block in range(blocks)]
  middle = "middle_block.1"
  linear = len(shapes.get(f"{middle}.proj_in.weight", ())) == 2
  # The middle has the depth of the last block, in diffusers' terms, whether or not that block attends.
  per_block = [depth or 1 for depth in depths[:-1]] + [_depth(shapes, middle) or 1]
  config = dict(
    _class_name="UNet2DConditionModel", act_fn="silu", norm_eps=1e-5, norm_num_groups=32, flip_sin_to_cos=True,
    freq_shift=0, center_input_sample=False, mid_block_scale_factor=1, downsample_padding=1,
    in_channels=_shape(shapes, "input_blocks.0.0.weight", 4)[1], out_channels=_shape(shapes, "out.2.weight", 4)[0],
    block_out_channels=widths, layers_per_block=layers,
    down_block_types=["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
    up_block_types=["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in up],
    attention_head_dim=[_heads("the U-Net", width) for width in widths] if linear else 8,
    cross_attention_dim=_shape(shapes, f"{middle}.transformer_blocks.0.attn2.to_k.weight", 2)[1])
  config |= dict(use_linear_projection=True) if linear else {}
  config |= dict(transformer_layers_per_block=per_block) if set(per_block) != {1} else {}
  if "label_emb.0.0.weight" in shapes:
    config |= dict(addition_embed_type="text_time", addition_time_embed_dim=256,
                   projection_class_embeddings_input_dim=_shape(shapes, "label_emb.0.0.weight", 2)[1])
  if "camera_embed.0.weight" in shapes:
    config |= dict(class_embed_type="projection",
                   projection_class_embeddings_input_dim=_shape(shapes, "camera_embed.0.weight", 2)[1])
  return config


def vae_config(shapes: Shapes) -> dict[str, Any]:
  """Returns the config.json of an autoencoder by its original names, without `scaling_factor` and `sample_size`."""
  blocks = len(_numbers(shapes, r"encoder\.down\.(\d+)\."))
  widths = [_shape(shapes, f"encoder.down.{block}.block.0.conv2.weight", 4)[0] for block in range(blocks)]
  return dict(
    _class_name="AutoencoderKL", act_fn="silu", block_out_channels=widths, norm_num_groups=32,
    down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks,
    in_channels=_shape(shapes, "encoder.conv_in.weight", 4)[1], out_channels=_shape(shapes, "decoder.conv_out.weight",
                                                                                    4)[0],
    latent_channels=_shape(shapes, "decoder.conv_in.weight", 4)[1],
    layers_per_block=len(_numbers(shapes, r"encoder\.down\.0\.block\.(\d+)\.")))


def clip_text_config(shapes: Shapes) -> dict[str, Any]:
  """Returns the config.json of CLIP's text encoder with the names of transformers."""
  shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
  layers = _numbers(shapes, r"encoder\.layers\.(\d+)\.")
  return _text(_shape(shapes, "embeddings.token_embedding.weight", 2),
               _shape(shapes, "embeddings.position_embedding.weight", 2)[0], len(layers),
               _shape(shapes, "encoder.layers.0.mlp.fc1.weight", 2)[0], "quick_gelu")


def open_clip_text_config(shapes: Shapes, used_layers: int | None = None) -> dict[str, Any]:
  """Returns the config.json of a text encoder with the names of OpenCLIP.

  Args:
    shapes: of its tensors.
    used_layers: number of layers that are used; None: all.
  """
  layers = len(_numbers(shapes, r"transformer\.resblocks\.(\d+)\."))
  return _text(_shape(shapes, "token_embedding.weight", 2), _shape(shapes, "positional_embedding", 2)[0],
               used_layers or layers, _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0], "gelu")


def _text(embedding: tuple[int, ...], positions: int, layers: int, inner: int, act: str) -> dict[str, Any]:
  return dict(architectures=["CLIPTextModel"], model_type="clip_text_model", vocab_size=embedding[0],
              hidden_size=embedding[1], intermediate_size=inner, num_hidden_layers=layers,
              num_attention_heads=_heads("the text encoder", embedding[1]), max_position_embeddings=positions,
              hidden_act=act, layer_norm_eps=1e-5, bos_token_id=0, eos_token_id=2, pad_token_id=1,
              projection_dim=embedding[1])


def clip_vision_config(shapes: Shapes) -> dict[str, Any]:
  """Returns the config.json of the image encoder with the names of OpenAI's CLIP."""
  patches = _shape(shapes, "conv1.weight", 4)
  side = math.isqrt(_shape(shapes, "positional_embedding", 2)[0] - 1)
  return dict(architectures=["CLIPVisionModelWithProjection"], model_type="clip_vision_model", hidden_size=patches[0],
              intermediate_size=_shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
              projection_dim=_shape(shapes, "proj", 2)[1], patch_size=patches[-1], image_size=side * patches[-1],
              num_hidden_layers=len(_numbers(shapes, r"transformer\.resblocks\.(\d+)\.")), num_channels=patches[1],
              num_attention_heads=_heads("the image encoder", patches[0]), hidden_act="quick_gelu", layer_norm_eps=1e-5)


def pose_projection_config(shapes: Shapes) -> dict[str, Any]:
  """Returns the config.json of the layer that joins the photo's token to the pose (Zero-1-to-3)."""
  width, inputs = _shape(shapes, "weight", 2)
  return dict(_class_name="CCProjection", in_channel=inputs, out_channel=width)


def _numbers(shapes: Shapes, pattern: str) -> list[int]:
  """Returns the numbers in the names that begin with the pattern, each once, in order."""
  matches = filter(None, map(re.compile(pattern).match, shapes))
  # Longer numbers are no numbers of layers, and int() of a very long one takes long.
  return sorted({int(match[1]) for match in matches if len(match[1]) < 5})


def _depth(shapes: Shapes, prefix: str) -> int:
  return len(_numbers(shapes, re.escape(prefix) + r"\.transformer_blocks\.(\d+)\."))


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
  shape = shapes.get(name)
  if shape is None:
    raise CheckpointError(f"it lacks the tensor {name}")
  if len(shape) != rank or 0 in shape:
    raise CheckpointError(f"its tensor {name} is {list(shape)}, expected {rank} axes")
  return shape


def _heads(network: str, width: int) -> int:
  if width % _HEAD:
    raise CheckpointError(f"{network} has the width {width}, which is no multiple of the {_HEAD} channels of a head; "
                          "give its configuration by config.prior.config, a folder in diffusers' format")
  return width // _HEAD
