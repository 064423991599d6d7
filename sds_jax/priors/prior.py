"""A prior: a frozen diffusion model of images, as data and functions, read from a folder in diffusers' format.

The folder has `model_index.json`, `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/scheduler_config.json` and perhaps
`vae/`. Its `model_index.json` says what it is:

  StableDiffusionPipeline   1.x and 2.x: latents of an AutoencoderKL, told of the text by CLIP (arXiv:2112.10752)
  IFPipeline                DeepFloyd IF's first stage: pixels of 64x64, told of the text by T5. Its network also
                            predicts a variance (arXiv:2102.09672), which is left out
  Zero123Pipeline, Zero1to3StableDiffusionPipeline   Zero-1-to-3 (arXiv:2303.11328): latents, told of a picture and a
                            pose (`sight`) in place of a text. In place of `text_encoder/` and `tokenizer/` there are
                            `image_encoder/`, `clip_camera_projection/` or `cc_projection/`, and perhaps
                            `feature_extractor/`; a key `pose` says what `sight.POSES` tells
  pixel_unshuffle           a key of ours: folded pixels, told of the text by CLIP, or, where the key `image_encoder`
                            names a component, of a picture and a pose; with the further keys

  image_size    height and width of its images; pixel_unshuffle r: they are folded by `space_to_depth` with block r
  camera_dim    length of the camera features that the U-Net takes as class labels (0: it is not told the camera)
  ray_dim       channels of `ray_features` that follow those of the image at the U-Net's input (0: none)
  vocabulary    the words that its training captions had, or absent
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import re
from typing import Any

import flax.linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from sds_jax.diffusion.parameterizations import EPS_FROM
from sds_jax.diffusion.schedules import prediction_type_from_config, schedule_from_config
from sds_jax.priors.loading import published
from sds_jax.priors.loading.checkpoint import COMPONENTS, abstract_params, load_on_device, open_component
from sds_jax.priors.loading.files import CheckpointError, read_json
from sds_jax.priors.loading.random_weights import random_params, random_text
from sds_jax.priors.loading.sources import Source, find
from sds_jax.priors.loading.text import TextEncoder, open_text_encoder
from sds_jax.priors.sight import LAYOUTS, Sight, open_sight, random_sight
from sds_jax.priors.spaces import Space, latent_space, pixel_space
from sds_jax.types import Array, DenoiseFn, EncodeFn, Params, Schedule
from sds_jax.views.cameras import CAMERA_DIM, RAY_DIM, ray_features

Cond = Mapping[str, Array]
"""What a prior is told of each image: `text` [B, T, D], or what else it attends to in that place; perhaps `camera`
[B, camera_dim] (zeros: unknown); and `x` [B, *x_shape] of the picture, where it is told one (zeros: none)."""

TEXT_ENCODERS = {"ours": "clip_text", "StableDiffusionPipeline": "clip_text", "IFPipeline": "t5"}
"""Kind of a folder -> kind of its text encoder."""


@dataclasses.dataclass(frozen=True)
class Prior:
  """A diffusion model of images, told words or a picture, without its parameters.

  Attributes:
    name: what `build` was given.
    image_size: height and width of its images.
    x_shape: shape of one x, the array it diffuses.
    x_bound: no |x| of an image is larger; None where there is no such bound (latents).
    schedule: the noise schedule it was trained with.
    prediction_type: what its network predicts: "epsilon", "v_prediction" or "sample" (`denoise` always gives eps).
    vocabulary: the words it knows, or None when it knows a natural language.
    camera_dim: length of the camera features it can be told, 0 when it can't.
    ray_dim: channels of rays that `denoise` adds to the network's input, made from the camera features; 0: none.
    embed: (prompts: n strings) -> [n, T, D] float32. Reads the text encoder from the prior's folder, unless it has
      embedded these prompts before, so not for use under jit. Raises ValueError for a word that is not in the
      vocabulary; warns when a prompt is cut.
    encode: (params, image [B, H, H, 3] in [0, 1], key) -> x [B, *x_shape] float32; images of other sizes are resized.
      A pixel-space prior uses neither params nor key; a latent one consumes the key.
    decode: (params, x [B, *x_shape]) -> image [B, image_size, image_size, 3] in [0, 1].
    denoise: (params, z_t [B, *x_shape], t [B] integer, cond) -> eps_hat, like z_t.
    source: where its files come from.
    sight: how it takes a picture in place of words, which `embed` then refuses; None: it takes words.
  """
  name: str
  image_size: int
  x_shape: tuple[int, ...]
  x_bound: float | None
  schedule: Schedule
  prediction_type: str
  vocabulary: frozenset[str] | None
  camera_dim: int
  ray_dim: int
  embed: Callable[[Sequence[str]], Array]
  encode: EncodeFn
  decode: Callable[[Params, Array], Array]
  denoise: DenoiseFn
  source: Source
  sight: Sight | None = None


@dataclasses.dataclass(frozen=True)
class Weights:
  """A prior's parameters before they are there.

  Attributes:
    networks: {name: linen module} of the networks that the parameters are of.
    dtype: that they are wanted in.
    load: (put=None: jax.device_put) -> the parameters: read, or made; each goes through `put`, as it comes, and is not
      kept otherwise.
  """
  networks: Mapping[str, nn.Module]
  dtype: Any
  load: Callable[..., Params]

  @property
  def shapes(self) -> Params:
    """Their tree of `jax.ShapeDtypeStruct`; allocates nothing."""
    return {name: _shapes(network, self.dtype) for name, network in self.networks.items()}


def build(name_or_path: str | os.PathLike, dtype: Any = jnp.float32, any_words: bool = False,
          vae_remat: bool = False, random_weights: bool = False) -> tuple[Prior, Params]:
  """A prior and its parameters, by network: `unet`; a latent one has `vae`, one told pictures `cc_projection`.

  All files are looked at, and the parts compared, before weights are read; those of the text encoder are read by
  `Prior.embed`.

  Args:
    name_or_path: "shapeworld" or "shapeworld-views", which come with the package; a published one by a name of
      `sources.HUB_IDS` or its hub id ("owner/name", perhaps "owner/name@revision"), which is downloaded unless it is
      here; or a folder.
    dtype: of parameters and of the networks' activations; what `Prior`'s functions take and give is float32.
    any_words: whether prompts may have words that the prior has never seen.
    vae_remat: whether the gradient through the VAE's encoder recomputes what is inside its blocks: less memory, slower.
    random_weights: whether the networks have random weights, and prompts random embeddings, in place of the published
      ones; no file is read then. Only for a name of `published.PRIORS`.

  Raises:
    CheckpointError (a ValueError): the folder or a file in it is missing or wrong, or can't be downloaded.
    ValueError: a network is of a kind that isn't supported, or random weights are asked for and the shapes not known.
  """
  prior, weights = open_prior(name_or_path, dtype, any_words, vae_remat, random_weights)
  return prior, weights.load()


def open_prior(name_or_path: str | os.PathLike, dtype: Any = jnp.float32, any_words: bool = False,
               vae_remat: bool = False, random_weights: bool = False) -> tuple[Prior, Weights]:
  """`build` up to the parameters, whose shapes are known already."""
  if random_weights:
    return _open_random(os.fspath(name_or_path), dtype, vae_remat)
  source = find(os.fspath(name_or_path), dtype)
  try:
    return _open_folder(source, dtype, any_words, vae_remat)
  except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
    raise CheckpointError(f"{source.folder}: one of its JSON files holds a value of the wrong type, or lacks one "
                          f"({error}); compare them with the model's publication") from error


def _open_folder(source: Source, dtype: Any, any_words: bool, vae_remat: bool) -> tuple[Prior, Weights]:
  """A prior whose files are here."""
  folder = source.folder
  index = read_json(folder / "model_index.json")
  kind = _kind(folder, index)
  if any_words:
    index = {key: value for key, value in index.items() if key != "vocabulary"}
  scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
  unet, unet_places = open_component(folder / "unet", "unet", dtype)
  networks, places = dict(unet=unet), dict(unet=unet_places)
  if kind in ("StableDiffusionPipeline", "Zero123Pipeline", "Zero1to3StableDiffusionPipeline"):
    networks["vae"], places["vae"] = open_component(folder / "vae", "vae", dtype, remat=vae_remat)
    space = latent_space(networks["vae"], _positive(folder / "unet" / "config.json", "sample_size", unet.sample_size))
  else:
    if kind == "IFPipeline":
      index = dict(pixel_unshuffle=1, image_size=unet.sample_size)
    space = _folded(folder, index)
  _check_unet(folder, index, unet, space, kind in LAYOUTS)
  text = sight = None
  if kind in LAYOUTS:
    sight, places["cc_projection"] = open_sight(source, kind, index, space, dtype, places)
    networks["cc_projection"] = sight.projection
    _check(folder, (f"the width that {LAYOUTS[kind].projection} gives", sight.projection.out_features, unet.text_dim))
  else:
    text = open_text_encoder(folder, TEXT_ENCODERS[kind], dtype)
    _check_text(folder, unet, text)
  prior = make_prior(source, index, space, unet, text, scheduler, sight)
  return prior, Weights(networks, dtype, lambda put=None: {
      name: load_on_device(where, dtype, put) for name, where in places.items()})


def _open_random(name: str, dtype: Any, vae_remat: bool) -> tuple[Prior, Weights]:
  """A published prior of which only the shapes are real."""
  if name not in published.PRIORS:
    raise ValueError(f"random weights are made for published priors only ({', '.join(published.PRIORS)}), not for "
                     f"{name!r}")
  configs = published.PRIORS[name]
  networks = dict(unet=COMPONENTS["unet"].network.from_config(configs["unet"], dtype=dtype))
  unet = networks["unet"]
  if "vae" in configs:
    networks["vae"] = COMPONENTS["vae"].network.from_config(configs["vae"], dtype=dtype, remat=vae_remat)
    space = latent_space(networks["vae"], unet.sample_size)
  else:
    space = pixel_space(unet.sample_size)
  source, text, sight = Source(name, None), None, None
  if "cc_projection" in configs:
    networks["cc_projection"] = COMPONENTS["cc_projection"].network.from_config(configs["cc_projection"], dtype=dtype)
    sight = random_sight(source, networks["cc_projection"], space)
  else:
    def text(prompts: Sequence[str]) -> Array:
      return random_text(prompts, published.TEXT_TOKENS, unet.text_dim)
  prior = make_prior(source, {}, space, unet, text, configs["scheduler"], sight)

  def load(put: Callable[[Any], Array] | None = None) -> Params:
    return {part: jax.tree.map(put or jax.device_put, random_params(_shapes(network, dtype)))
            for part, network in networks.items()}

  return prior, Weights(networks, dtype, load)


def _shapes(network: nn.Module, dtype: Any) -> Params:
  """The tree of a network's parameters in `dtype`, as `jax.ShapeDtypeStruct`."""
  flat = abstract_params(network)
  return traverse_util.unflatten_dict({path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in flat.items()})


def make_prior(source: Source, index: Mapping[str, Any], space: Space, unet: nn.Module,
               text: Callable[[Sequence[str]], Array] | None, scheduler: Mapping[str, Any],
               sight: Sight | None = None) -> Prior:
  """A prior of parts at hand.

  Args:
    source: where they come from.
    index: a `model_index.json`; `camera_dim`, `ray_dim` and `vocabulary` are read.
    space: where it diffuses.
    unet: linen module; its parameters are `params["unet"]`. Channels that it gives beyond those of x are left out.
    text: (prompts: n strings) -> [n, T, D]; None: it is told a picture by `sight`.
    scheduler: a `scheduler_config.json`.
    sight: None: it is told a text.
  """
  camera_dim, ray_dim = index.get("camera_dim", 0), index.get("ray_dim", 0)
  schedule, prediction_type = schedule_from_config(scheduler), prediction_type_from_config(scheduler)
  vocabulary = frozenset(index["vocabulary"]) if index.get("vocabulary") else None

  def embed(prompts: Sequence[str]) -> Array:
    if text is None:
      raise ValueError(f"the prior {source.name!r} is told a picture, not words: use it with configs/image.py")
    check_words(prompts, vocabulary)
    return text(prompts)

  def denoise(params: Params, z_t: Array, t: Array, cond: Cond) -> Array:
    labels = _camera_features(cond, z_t.shape[0], camera_dim)
    seen = jnp.concatenate([z_t, cond["x"].astype(z_t.dtype)], axis=-1) if sight else z_t
    prediction = unet.apply({"params": params["unet"]}, unet_input(seen, labels, ray_dim), t, cond["text"], labels)
    prediction = prediction[..., :z_t.shape[-1]].astype(z_t.dtype)
    return EPS_FROM[prediction_type](schedule, z_t, t, prediction)

  return Prior(source.name, space.image_size, space.x_shape, space.bound, schedule, prediction_type, vocabulary,
               camera_dim, ray_dim, embed, space.encode, space.decode, denoise, source, sight)


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


def _kind(folder: Path, index: Mapping[str, Any]) -> str:
  """A key of TEXT_ENCODERS or of `sight.LAYOUTS`."""
  ours = "our views" if "image_encoder" in index else "ours"
  kind = ours if "pixel_unshuffle" in index else index.get("_class_name")
  if kind not in TEXT_ENCODERS and kind not in LAYOUTS:
    raise CheckpointError(f"{folder / 'model_index.json'}: _class_name={kind!r} is not supported; supported: "
                          "'StableDiffusionPipeline' (1.x and 2.x), 'IFPipeline' (the first stage), 'Zero123Pipeline' "
                          "and 'Zero1to3StableDiffusionPipeline', and folders of ours with the key pixel_unshuffle")
  return kind


def _folded(folder: Path, index: Mapping[str, Any]) -> Space:
  path = folder / "model_index.json"
  size, block = (_positive(path, key, index.get(key)) for key in ("image_size", "pixel_unshuffle"))
  _check(folder, ("image_size modulo pixel_unshuffle", size % block, 0))
  return pixel_space(size, block)


def _camera_features(cond: Cond, batch: int, camera_dim: int) -> Array | None:
  """[B, camera_dim]; zeros (unknown) when cond has none; None for a prior that takes none."""
  camera = cond.get("camera")
  if not camera_dim:
    if camera is not None:
      raise ValueError("cond has a camera, but this prior can't be told one (camera_dim is 0)")
    return None
  return jnp.zeros((batch, camera_dim)) if camera is None else camera


def _check_unet(folder: Path, index: Mapping[str, Any], unet: nn.Module, space: Space, sighted: bool) -> None:
  """Raises CheckpointError when the network is not one for this space and this `model_index.json`."""
  camera_dim, ray_dim, channels = index.get("camera_dim", 0), index.get("ray_dim", 0), space.x_shape[-1]
  if unet.class_embed_type not in (None, "projection"):
    raise CheckpointError(f"{folder}: the U-Net's class_embed_type={unet.class_embed_type!r} wants something beside "
                          "noise level, text and camera; supported: null, 'projection' (of a camera)")
  told = unet.projection_class_embeddings_input_dim if unet.class_embed_type == "projection" else 0
  _check(folder,
         ("ray_dim", ray_dim, RAY_DIM if ray_dim else 0),
         ("camera_dim with rays", camera_dim, CAMERA_DIM if ray_dim else camera_dim),
         ("the U-Net's in_channels", unet.in_channels, (2 if sighted else 1) * channels + ray_dim),
         ("the side of x modulo what the U-Net halves it by",
          space.x_shape[0] % 2 ** (len(unet.block_out_channels) - 1), 0),
         ("camera_dim", camera_dim, told))
  if unet.out_channels != 2 * channels:  # the second half is a learned variance
    _check(folder, ("the U-Net's out_channels", unet.out_channels, channels))


def _check_text(folder: Path, unet: nn.Module, text: TextEncoder) -> None:
  """Raises CheckpointError when the text encoder is not one for this tokenizer and this U-Net."""
  _check(folder, ("the text encoder's width", text.width, unet.text_dim))
  if text.kind == "clip_text":
    _check(folder, ("the text encoder's vocab_size", text.model.vocab_size, text.tokenizer.backend.get_vocab_size()))
    if text.tokenizer.length > text.model.max_position_embeddings:
      raise CheckpointError(f"{folder}: the tokenizer gives {text.tokenizer.length} tokens, the text encoder takes "
                            f"{text.model.max_position_embeddings}")


def _check(folder: Path, *facts: tuple[str, Any, Any]) -> None:
  """Raises CheckpointError for the first of (what, found, needed) that differs."""
  for what, found, needed in facts:
    if found != needed:
      raise CheckpointError(f"{folder}: {what} is {found}, expected {needed}")


def _positive(path: Path, key: str, value: Any) -> int:
  if not isinstance(value, int) or value < 1:
    raise CheckpointError(f"{path}: {key}={value!r} should be a positive integer")
  return value
