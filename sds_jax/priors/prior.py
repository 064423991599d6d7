"""A prior: a frozen text-to-image diffusion model as data and functions, read from a folder in diffusers' format.

The folder has `model_index.json`, `unet/`, `text_encoder/`, `tokenizer/` and `scheduler/scheduler_config.json`. Keys of
`model_index.json` that are ours:

  pixel_unshuffle  r: the network diffuses in pixel space, on images folded by `space_to_depth` with block r
  image_size       height and width of its images
  camera_dim       length of the camera features that the U-Net takes as class labels (0: it is not told the camera)
  ray_dim          channels of `ray_features` that follow those of the image at the U-Net's input (0: none)
  vocabulary       the words that its training captions had, or absent
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from importlib import resources
import os
from pathlib import Path
import re
from typing import Any, Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.diffusion.parameterizations import EPS_FROM
from sds_jax.diffusion.schedules import prediction_type_from_config, schedule_from_config
from sds_jax.priors.checkpoint import read_component
from sds_jax.priors.files import CheckpointError, read_json
from sds_jax.priors.tokenizers import CLIPTokenizer, load_tokenizer
from sds_jax.types import Array, DenoiseFn, EncodeFn, Params, Schedule
from sds_jax.views.cameras import CAMERA_DIM, RAY_DIM, ray_features

Cond = Mapping[str, Array]
"""What a prior is told of each image: `text` [B, T, D] and perhaps `camera` [B, camera_dim] (zeros: unknown)."""

PLANNED = ("sd15", "sd21-base", "sd21", "if")
"""Names kept for published models that are not available yet."""


@dataclasses.dataclass(frozen=True)
class Prior:
  """A text-to-image diffusion model, without its parameters.

  Attributes:
    name: what `build` was given.
    image_size: height and width of its images.
    x_shape: shape of one x, the array it diffuses.
    schedule: the noise schedule it was trained with.
    prediction_type: what its network predicts: "epsilon", "v_prediction" or "sample" (`denoise` always gives eps).
    vocabulary: the words it knows, or None when it knows a natural language.
    camera_dim: length of the camera features it can be told, 0 when it can't.
    ray_dim: channels of rays that `denoise` adds to the network's input, made from the camera features; 0: none.
    embed: (params, prompts: n strings) -> [n, T, D]. Not for use under jit, since it reads strings. Raises ValueError
      for a word that is not in the vocabulary; warns when a prompt is cut.
    encode: (params, image [B, H, W, 3] in [0, 1], key) -> x [B, *x_shape]; square images of other sizes are resized. A
      pixel-space prior uses neither params nor key.
    decode: (params, x [B, *x_shape]) -> image [B, image_size, image_size, 3] in [0, 1].
    denoise: (params, z_t [B, *x_shape], t [B] integer, cond) -> eps_hat, like z_t.
  """
  name: str
  image_size: int
  x_shape: tuple[int, ...]
  schedule: Schedule
  prediction_type: str
  vocabulary: frozenset[str] | None
  camera_dim: int
  ray_dim: int
  embed: Callable[[Params, Sequence[str]], Array]
  encode: EncodeFn
  decode: Callable[[Params, Array], Array]
  denoise: DenoiseFn


def space_to_depth(image: Array, block: int) -> Array:
  """Folds block x block pixels into channels: [..., H, W, C] -> [..., H/block, W/block, C * block^2].

  Channel c * block^2 + dy * block + dx of the result is channel c of the pixel at row dy, column dx of the block, which
  is the order of torch's `pixel_unshuffle`.

  Raises:
    ValueError: height or width is not divisible by block.
  """
  *lead, height, width, channels = image.shape
  if height % block or width % block:
    raise ValueError(f"an image of {height}x{width} can't be cut into blocks of {block}x{block}")
  n = len(lead)
  x = image.reshape(*lead, height // block, block, width // block, block, channels)
  x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
  return x.reshape(*lead, height // block, width // block, channels * block**2)


def depth_to_space(x: Array, block: int) -> Array:
  """The inverse of `space_to_depth`: [..., h, w, C * block^2] -> [..., h * block, w * block, C].

  Raises:
    ValueError: the channels are not divisible by block^2.
  """
  *lead, height, width, channels = x.shape
  if channels % block**2:
    raise ValueError(f"{channels} channels are not divisible by {block}^2")
  n = len(lead)
  x = x.reshape(*lead, height, width, channels // block**2, block, block)
  x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
  return x.reshape(*lead, height * block, width * block, channels // block**2)


def shipped_folder() -> Path:
  """Where the prior that comes with the package lies."""
  return Path(str(resources.files("sds_jax"))) / "shapeworld" / "prior"


def build(name_or_path: str | os.PathLike, dtype: Any = jnp.float32,
          any_words: bool = False) -> tuple[Prior, Params]:
  """A prior and its parameters, dict(unet=..., text_encoder=...).

  Args:
    name_or_path: "shapeworld", the prior that comes with the package, or a folder.
    dtype: of parameters and of the networks' activations; predictions come out as float32.
    any_words: whether prompts may have words that the prior has never seen.

  Raises:
    ValueError: a name that is not available.
    CheckpointError (a ValueError): the folder or a file in it is missing or wrong.
  """
  name = os.fspath(name_or_path)
  folder = shipped_folder() if name == "shapeworld" else Path(name)
  if not folder.is_dir():
    _raise_unavailable(name, folder)
  index = read_json(folder / "model_index.json")
  if any_words:
    index = {key: value for key, value in index.items() if key != "vocabulary"}
  if "pixel_unshuffle" not in index:
    raise CheckpointError(f"{folder / 'model_index.json'} has no pixel_unshuffle, so this is no pixel-space prior; "
                          "latent priors (with a VAE) are not available yet")
  scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
  unet, unet_params = read_component(folder / "unet", "unet", dtype)
  text, text_params = read_component(folder / "text_encoder", "clip_text", dtype)
  tokenizer = load_tokenizer(folder / "tokenizer")
  _check_fit(folder, index, unet, text, tokenizer)
  return (pixel_prior(name, index, unet, text, tokenizer, scheduler),
          dict(unet=unet_params, text_encoder=text_params))


def pixel_prior(name: str, index: Mapping[str, Any], unet: nn.Module, text_encoder: nn.Module,
                tokenizer: CLIPTokenizer, scheduler: Mapping[str, Any]) -> Prior:
  """A pixel-space prior of networks at hand.

  Args:
    name: for messages.
    index: a `model_index.json` (the keys in this file's docstring are read).
    unet, text_encoder: linen modules; their parameters are `params["unet"]` and `params["text_encoder"]`.
    tokenizer: of the text encoder.
    scheduler: a `scheduler_config.json`.
  """
  block, size = index["pixel_unshuffle"], index["image_size"]
  camera_dim, ray_dim = index.get("camera_dim", 0), index.get("ray_dim", 0)
  schedule, prediction = schedule_from_config(scheduler), prediction_type_from_config(scheduler)
  vocabulary = frozenset(index["vocabulary"]) if index.get("vocabulary") else None
  encode_text = jax.jit(lambda params, ids: text_encoder.apply({"params": params}, ids))

  def embed(params: Params, prompts: Sequence[str]) -> Array:
    check_words(prompts, vocabulary)
    return encode_text(params["text_encoder"], jnp.asarray(tokenizer(prompts)))

  def encode(params: Params, image: Array, key: Array) -> Array:
    del params, key
    return space_to_depth(2 * _resized(image, size) - 1, block)

  def decode(params: Params, x: Array) -> Array:
    del params
    return jnp.clip((depth_to_space(x, block) + 1) / 2, 0, 1)

  def denoise(params: Params, z_t: Array, t: Array, cond: Cond) -> Array:
    labels = _camera_features(cond, z_t.shape[0], camera_dim)
    prediction_ = unet.apply({"params": params["unet"]}, unet_input(z_t, labels, ray_dim), t, cond["text"], labels)
    return EPS_FROM[prediction](schedule, z_t, t, prediction_.astype(z_t.dtype))

  return Prior(name, size, (size // block, size // block, 3 * block**2), schedule, prediction, vocabulary, camera_dim,
               ray_dim, embed, encode, decode, denoise)


def unet_input(z_t: Array, camera: Array | None, ray_dim: int) -> Array:
  """z_t [B, h, h, C], followed by the rays of its pixels when the network takes them: [B, h, h, C + ray_dim]."""
  if not ray_dim:
    return z_t
  rays = jax.vmap(lambda features: ray_features(features, z_t.shape[1]))(camera)
  return jnp.concatenate([z_t, rays.astype(z_t.dtype)], axis=-1)


def check_words(prompts: Sequence[str], vocabulary: frozenset[str] | None) -> None:
  """Raises ValueError when a prompt has a word that is not in the vocabulary (None: any word will do)."""
  if vocabulary is None:
    return
  for prompt in prompts:
    unknown = sorted(set(re.findall(r"\w+", prompt.lower())) - vocabulary)
    if unknown:
      raise ValueError(f"the prior doesn't know {', '.join(map(repr, unknown))} in {prompt!r}; it knows: "
                       f"{', '.join(sorted(vocabulary))}")


def _camera_features(cond: Cond, batch: int, camera_dim: int) -> Array | None:
  """[B, camera_dim]; zeros (unknown) when cond has none; None for a prior that takes none."""
  camera = cond.get("camera")
  if not camera_dim:
    if camera is not None:
      raise ValueError("cond has a camera, but this prior can't be told one (camera_dim is 0)")
    return None
  return jnp.zeros((batch, camera_dim)) if camera is None else camera


def _resized(image: Array, size: int) -> Array:
  batch, height, width, channels = image.shape
  if height != width or channels != 3:
    raise ValueError(f"image has shape {image.shape}, expected square images [B, H, H, 3]")
  return image if height == size else jax.image.resize(image, (batch, size, size, 3), "linear")


def _raise_unavailable(name: str, folder: Path) -> None:
  if name == "shapeworld":
    raise CheckpointError(f"the prior 'shapeworld' is not in this installation: {folder} does not exist")
  if name in PLANNED:
    raise ValueError(f"the prior {name!r} is not available yet; available: 'shapeworld', or a folder")
  raise CheckpointError(f"the prior {name!r} is neither a name ('shapeworld') nor a folder that exists")


def _check_fit(folder: Path, index: Mapping[str, Any], unet: nn.Module, text: nn.Module,
               tokenizer: CLIPTokenizer) -> None:
  """Raises CheckpointError when the parts of a folder are not of one prior."""
  for key in ("pixel_unshuffle", "image_size"):
    if not isinstance(index.get(key), int) or index[key] < 1:
      raise CheckpointError(f"{folder / 'model_index.json'}: {key}={index.get(key)!r} should be a positive integer")
  camera_dim, ray_dim = index.get("camera_dim", 0), index.get("ray_dim", 0)
  told = unet.projection_class_embeddings_input_dim if unet.class_embed_type == "projection" else 0
  for what, found, needed in (
      ("image_size modulo pixel_unshuffle", index["image_size"] % index["pixel_unshuffle"], 0),
      ("ray_dim", ray_dim, RAY_DIM if ray_dim else 0),
      ("camera_dim with rays", camera_dim, CAMERA_DIM if ray_dim else camera_dim),
      ("the U-Net's in_channels", unet.in_channels, 3 * index["pixel_unshuffle"]**2 + ray_dim),
      ("the U-Net's out_channels", unet.out_channels, 3 * index["pixel_unshuffle"]**2),
      ("camera_dim", camera_dim, told),
      ("the text encoder's hidden_size", text.hidden_size, unet.cross_attention_dim),
      ("the text encoder's vocab_size", text.vocab_size, tokenizer.backend.get_vocab_size())):
    if found != needed:
      raise CheckpointError(f"{folder}: {what} is {found}, expected {needed}")
  if tokenizer.length > text.max_position_embeddings:
    raise CheckpointError(f"{folder}: the tokenizer gives {tokenizer.length} tokens, the text encoder takes "
                          f"{text.max_position_embeddings}")
