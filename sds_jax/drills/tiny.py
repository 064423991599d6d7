"""The smallest complete priors and run, for drills and tests of the control flow."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from sds_jax.priors.loading import checkpoint
from sds_jax.priors.loading.files import write_json
from sds_jax.shapeworld import captions, tokenizer
from sds_jax.views.poses import POSE_DIM

# Widths of 8 are the smallest with more than one attention head and norm group.
_UNET = dict(
    _class_name="UNet2DConditionModel", sample_size=4, in_channels=48, out_channels=48,
    down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"], block_out_channels=[8],
    layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
    class_embed_type="projection", projection_class_embeddings_input_dim=16)
_IMAGE_ENCODER = dict(
    model_type="clip_vision_model", hidden_size=8, intermediate_size=16, projection_dim=8, num_hidden_layers=1,
    num_attention_heads=2, image_size=16, patch_size=8)
_CLIP = dict(model_type="clip_text_model", hidden_size=8, intermediate_size=16, num_hidden_layers=1,
             num_attention_heads=2, max_position_embeddings=20, hidden_act="quick_gelu")

SETTINGS: dict[str, Any] = {
    "prompt": "a red cube", "render.height": 16, "render.width": 16, "render.num_samples": 4, "render.candidates": 8,
    "field.mlp.hidden": 8, "field.mlp.depth": 1, "field.mlp.num_octaves": 2, "training.steps": 4,
    "training.log_every": 1, "training.render_every": 0, "training.checkpoint_every": 100, "optimizer.warmup_steps": 1,
    "occupancy.resolution": 4, "occupancy.every": 2, "occupancy.start_step": 1, "export.mesh_resolution": 16,
    "export.texture_size": 64, "export.image_size": 16, "export.turntable_frames": 2, "export.num_samples": 8,
    "shading.lambertian": 0.0, "render.block_points": 0}
"""Dotted name -> value over configs/text.py: a few steps of a tiny field. Set `prior.path` to a `write_prior` folder.

Shading and blocks are off, because their branches dominate the compilation of a step.
"""


def write_prior(folder: str | os.PathLike, views: int = 1) -> Path:
  """Writes a tiny text prior for ShapeWorld captions and cameras.

  The prior makes 16x16 images and has a few thousand random weights, in diffusers format.

  Args:
    folder: to write; created if absent.
    views: number of views of an object that the prior looks at together.

  Returns:
    `folder`.
  """
  folder = Path(folder)
  tokenizer.write_tokenizer(folder / "tokenizer")
  vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
  # The text encoder needs the size of the vocabulary and the special ids of its tokenizer.
  clip = dict(_CLIP, vocab_size=len(vocabulary), **tokenizer.special_ids(folder / "tokenizer"))
  _write_parts(folder, ("unet", "unet", _UNET), ("text_encoder", "clip_text", clip))
  write_json(folder / "model_index.json", dict(
      pixel_unshuffle=4, image_size=16, camera_dim=16, views=views, vocabulary=sorted(captions.WORDS),
      captions=captions.GRAMMAR.as_dict()))
  return folder


def write_view_prior(folder: str | os.PathLike) -> Path:
  """Writes a tiny view prior and returns `folder`.

  The conditions of the prior are a photo and a pose.
  """
  folder = Path(folder)
  # 48 channels of z_t and 48 of the photo.
  _write_parts(folder, ("unet", "unet", dict(_UNET, in_channels=96)),
               ("image_encoder", "image_encoder", _IMAGE_ENCODER),
               ("cc_projection", "cc_projection",
                dict(in_features=_IMAGE_ENCODER["projection_dim"] + POSE_DIM, out_features=8)),
               ("elevation_head", "elevation_head", dict(in_features=_IMAGE_ENCODER["projection_dim"])))
  write_json(folder / "model_index.json", dict(
      pixel_unshuffle=4, image_size=16, camera_dim=16, image_encoder=["transformers", "CLIPVisionModelWithProjection"],
      pose="polar", patch_tokens=True))
  return folder


def _write_parts(folder: Path, *parts: tuple[str, str, dict[str, Any]]) -> None:
  """Writes networks with random weights, and the noise schedule.

  Args:
    folder: of the prior.
    *parts: (name of the folder, kind of the component, config) of each network.
  """
  # A fixed seed: tests may compare runs on equal priors.
  rng = np.random.default_rng(0)
  for name, kind, config in parts:
    shapes = checkpoint.abstract_params(checkpoint.COMPONENTS[kind].network.from_config(config))
    # Scales around 1 and small weights keep the activations finite. numpy, not `init`: XLA would compile for seconds.
    params = {path: ((path[-1] == "scale") + rng.normal(size=leaf.shape) / max(leaf.size, 1) ** 0.25).astype(np.float32)
              for path, leaf in shapes.items()}
    checkpoint.write_component(folder / name, kind, config, traverse_util.unflatten_dict(params), dtype=jnp.float32)
  (folder / "scheduler").mkdir(exist_ok=True)
  write_json(folder / "scheduler" / "scheduler_config.json", dict(
      _class_name="DDIMScheduler", num_train_timesteps=100, beta_schedule="squaredcos_cap_v2",
      prediction_type="v_prediction"))
