"""Parts that families share: opening networks, checking that they fit, and a prior around a U-Net."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.diffusion.parameterizations import EPS_FROM
from sds_jax.diffusion.schedules import prediction_type_from_config, schedule_from_config
from sds_jax.priors.base import Cond, Config, Prior, Weights, accept_any_prompt, network_shapes
from sds_jax.priors.controlnets import ControlNet
from sds_jax.priors.loading.additions import NONE, Additions
from sds_jax.priors.loading.checkpoint import Component, Stored, component, load_on_device, open_component
from sds_jax.priors.loading.files import CheckpointError, read_json
from sds_jax.priors.loading.lora_names import UNET
from sds_jax.priors.loading.random_weights import random_params
from sds_jax.priors.loading.recognise import describe_channels
from sds_jax.priors.loading.source import Source
from sds_jax.priors.loading.text import TextEncoder, TextEncoderPair
from sds_jax.priors.networks.config_check import MAX_SIDE, shown, whole
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.priors.photo import PhotoConditioning
from sds_jax.priors.spaces import Space
from sds_jax.types import Array, Camera, Params
from sds_jax.views import cameras
from sds_jax.views.cameras import CAMERA_DIM, RAY_DIM, ray_features


class StoredNetworks:
  """The networks of a prior's folder, opened one by one.

  `weights` reads the parameters of all of them.

  Attributes:
    networks: {name: linen module}, by the names of their parameters.
    places: {name: where each parameter is stored}.
  """

  def __init__(self, folder: Path, dtype: Any, variant: str = "", additions: Additions = NONE):
    self.folder, self.dtype, self.variant, self.additions = folder, dtype, variant, additions
    self.networks: dict[str, nn.Module] = {}
    self.places: dict[str, dict[Any, Stored]] = {}

  def open(self, name: str, kind: str | Component | None = None, folder: str | None = None, **fields: Any) -> nn.Module:
    """Opens a network from its files' headers and returns the module.

    Args:
      name: of its parameters: `params[name]`.
      kind: its component (None: `checkpoint.COMPONENTS[name]`).
      folder: below the prior's folder (None: `name`).
      **fields: further fields of the module, as `vae_remat`.
    """
    network, places = open_component(self.folder / (folder or name), kind or name, self.dtype, self.variant, **fields)
    if name == UNET:
      places = self.additions.merged(UNET, network, places, component(kind or name).table)
    self.networks[name], self.places[name] = network, places
    return network

  def add(self, name: str, network: nn.Module, places: Mapping[Any, Stored]) -> None:
    """Adds a network that was opened elsewhere, and the places of its parameters."""
    self.networks[name], self.places[name] = network, dict(places)

  def weights(self) -> Weights:
    """Returns the weights; `load` reads them array by array."""
    return Weights(self.networks, self.dtype, lambda put=None: {
      name: load_on_device(places, self.dtype, put) for name, places in self.places.items()})


class RandomNetworks:
  """Networks of published shapes with random parameters, with the interface of `StoredNetworks`."""

  def __init__(self, configs: Mapping[str, Config], dtype: Any):
    self.configs, self.dtype = configs, dtype
    self.networks: dict[str, nn.Module] = {}

  def open(self, name: str, kind: str | Component | None = None, **fields: Any) -> nn.Module:
    """Returns the network that `configs[name]` describes."""
    network = component(kind or name).network.from_config(self.configs[name], dtype=self.dtype, **fields)
    self.networks[name] = network
    return network

  def add(self, name: str, network: nn.Module) -> None:
    """Adds a network that was built elsewhere."""
    self.networks[name] = network

  def weights(self) -> Weights:
    """Returns the weights; `load` draws them (`random_weights.random_params`)."""
    def load(put: Callable[[Any], Array] | None = None) -> Params:
      return {name: jax.tree.map(put or jax.device_put, random_params(network_shapes(network, self.dtype)))
              for name, network in self.networks.items()}

    return Weights(self.networks, self.dtype, load)


def make_prior(source: Source, space: Space, unet: nn.Module, scheduler: Config,
               text: Callable[[Sequence[str]], Mapping[str, Array]] | None = None,
               photo: PhotoConditioning | None = None, camera_dim: int = 0, ray_dim: int = 0,
               vocabulary: frozenset[str] | None = None,
               check_prompt: Callable[..., None] = accept_any_prompt, notes: Sequence[str] = (),
               time_ids: tuple[int, ...] | None = None, control: ControlNet | None = None, views: int = 1,
               camera_features: Callable[[Camera], Array] = cameras.camera_features) -> Prior:
  """Returns the prior of a U-Net with cross-attention.

  Args:
    source: where its files come from.
    space: the space in which it diffuses.
    unet: linen module with the inputs of `UNet2DConditionModel`; its parameters are `params["unet"]`. Output channels
      beyond those of x (a learned variance, arXiv:2102.09672) are dropped.
    scheduler: content of a scheduler_config.json.
    text: (prompts: n strings) -> {"text": [n, T, D]}, with "pooled" [n, P] for a network that takes it; None for a
      prior that is conditioned on a photo.
    photo: how the prior is conditioned on a photo; None for a prior that is conditioned on a prompt.
    camera_dim, ray_dim, vocabulary, check_prompt, notes, time_ids, views, camera_features: see `Prior`.
    control: the ControlNet; its parameters are `params["controlnet"]`. None: none.
  """
  # Read now, so that an unsupported scheduler fails before weights are loaded.
  schedule, prediction_type = schedule_from_config(scheduler), prediction_type_from_config(scheduler)

  def embed(prompts: Sequence[str]) -> Mapping[str, Array]:
    if text is None:
      raise ValueError(f"the prior {source.name!r} is conditioned on a photo, not on a prompt: use configs/image.py")
    check_words(prompts, vocabulary)
    return text(prompts)

  def predict(params: Params, z_t: Array, t: Array, cond: Cond) -> Array:
    labels = _camera_features(cond, z_t.shape[0], camera_dim)
    # Zero-1-to-3's order of input channels: z_t, then the photo.
    x = jnp.concatenate([z_t, cond["x"].astype(z_t.dtype)], axis=-1) if photo else z_t
    prediction = unet.apply({"params": params["unet"]}, unet_input(x, labels, ray_dim), t, cond["text"], labels,
                            *_pooled(cond, time_ids), **_residuals(control, params, z_t, t, cond))
    # Channels behind those of x are a learned variance, which has no use here.
    return prediction[..., :z_t.shape[-1]].astype(z_t.dtype)

  def denoise(params: Params, z_t: Array, t: Array, cond: Cond) -> Array:
    return EPS_FROM[prediction_type](schedule, z_t, t, predict(params, z_t, t, cond))

  return Prior(source.name, space.image_size, space.x_shape, space.bound, schedule, prediction_type, embed,
               space.encode, space.decode, denoise, source, photo, vocabulary, check_prompt, camera_dim, ray_dim,
               predict, tuple(notes), time_ids, control.choice.kind if control else "", views, camera_features)


def _pooled(cond: Cond, time_ids: tuple[int, ...] | None) -> tuple[Array, ...]:
  """Returns the pooled text [B, P] and the sizes [B, 6] of the images; () for a network that takes neither."""
  if time_ids is None:
    return ()
  if "pooled" not in cond:
    raise ValueError("cond has no pooled text, which this prior takes beside the tokens: give all that `embed` returns")
  sizes = cond.get("time_ids")
  if sizes is None:
    sizes = jnp.broadcast_to(jnp.asarray(time_ids, jnp.float32), (cond["pooled"].shape[0], len(time_ids)))
  return cond["pooled"], sizes


def _residuals(control: ControlNet | None, params: Params, z_t: Array, t: Array,
               cond: Cond) -> dict[str, tuple[Array, ...]]:
  """Returns the further input of a U-Net with a ControlNet by its name; {} without one."""
  if (control is None) != ("control" not in cond):
    # Refused: an image that is ignored would look like a prior that follows the image.
    raise ValueError("the prior has a ControlNet, but cond has no image `control`" if control else
                     "cond has an image `control`, but this prior has no ControlNet")
  if control is None:
    return {}
  return dict(residuals=control.residuals(params["controlnet"], z_t, t, cond["text"], cond["control"]))


def unet_input(x: Array, camera: Array | None, ray_dim: int) -> Array:
  """Appends the rays of the pixels to x.

  [B, h, h, C] -> [B, h, h, C + ray_dim], for a network that takes rays.

  Args:
    x: z_t, perhaps with the photo's channels behind.
    camera: [B, camera_dim] features; unused where ray_dim is 0.
    ray_dim: channels of the rays; 0: x is returned as given.
  """
  if not ray_dim:
    return x
  rays = jax.vmap(lambda features: ray_features(features, x.shape[1]))(camera)
  return jnp.concatenate([x, rays.astype(x.dtype)], axis=-1)


def _camera_features(cond: Cond, batch: int, camera_dim: int) -> Array | None:
  """Returns [B, camera_dim].

  Zeros (unknown) when cond has no camera; None for a prior without cameras.
  """
  camera = cond.get("camera")
  if not camera_dim:
    # Refused: a camera that is ignored would look like a prior that knows cameras.
    if camera is not None:
      raise ValueError("cond has a camera, but this prior takes none (camera_dim is 0)")
    return None
  # Zeros are the unknown camera in the priors' training.
  return jnp.zeros((batch, camera_dim)) if camera is None else camera


def check_words(prompts: Sequence[str], vocabulary: frozenset[str] | None) -> None:
  """Raises ValueError when a prompt has a word outside the vocabulary.

  None accepts every word.
  """
  if vocabulary is None:
    return
  for prompt in prompts:
    # Lower case, as the tokenizer makes it; punctuation is no word.
    unknown = sorted(set(re.findall(r"\w+", prompt.lower())) - vocabulary)
    if unknown:
      raise ValueError(f"the prior doesn't know {', '.join(map(repr, unknown))} in {prompt!r}; it knows: "
                       f"{', '.join(sorted(vocabulary))}")


def read_scheduler(source: Source) -> Config:
  """Returns the content of the scheduler's config file.

  Raises:
    CheckpointError: the file is missing or damaged, or has no schedule that is supported; the message names the file,
      the key and its value.
  """
  path = source.folder / "scheduler" / "scheduler_config.json"
  config = read_json(path)
  try:
    schedule_from_config(config)
    prediction_type_from_config(config)
  except ValueError as error:
    raise CheckpointError(f"{path}: {error}") from error
  return config


def check_unet(folder: Path, unet: UNet2DConditionModel, space: Space, images: int = 1, camera_dim: int = 0,
               ray_dim: int = 0, pooled: bool = False) -> None:
  """Raises CheckpointError when the U-Net does not fit the space and the conditions.

  Args:
    folder: the prior's folder, for the message.
    unet: the network.
    space: the space in which the prior diffuses.
    images: how many x the network's input has: 1, or 2 with a photo's x behind z_t.
    camera_dim, ray_dim: see `Prior`.
    pooled: whether the prior has pooled text.
  """
  channels = space.x_shape[-1]
  if unet.pooled_dim and not pooled:
    raise CheckpointError(f"{folder}: the U-Net's addition_embed_type='text_time' wants the pooled text of Stable "
                          "Diffusion XL, which this kind of model does not have; supported: null, 'text'")
  if unet.class_embed_type not in (None, "projection"):
    raise CheckpointError(f"{folder}: the U-Net's class_embed_type={unet.class_embed_type!r} wants something beside "
                          "noise level, text and camera; supported: null, 'projection' (of a camera)")
  wanted = images * channels + ray_dim
  if unet.in_channels != wanted and (kind := describe_channels(unet.in_channels)):
    raise CheckpointError(f"{folder}: the U-Net's in_channels is {unet.in_channels}, expected {wanted}: it is {kind}, "
                          "which is not supported")
  # The camera enters through the class embedding, so its length must be the embedding's input.
  labels = unet.projection_class_embeddings_input_dim if unet.class_embed_type == "projection" else 0
  check_facts(
    folder,
    ("ray_dim", ray_dim, RAY_DIM if ray_dim else 0),
    ("camera_dim with rays", camera_dim, CAMERA_DIM if ray_dim else camera_dim),
    ("the U-Net's in_channels", unet.in_channels, wanted),
    ("the side of x modulo what the U-Net halves it by", space.x_shape[0] % 2 ** (len(unet.block_out_channels) - 1), 0),
    ("camera_dim", camera_dim, labels))
  if unet.out_channels != 2 * channels:  # the second half is a learned variance
    check_facts(folder, ("the U-Net's out_channels", unet.out_channels, channels))


def check_text(folder: Path, unet: UNet2DConditionModel, text: TextEncoder | TextEncoderPair) -> None:
  """Raises CheckpointError when the text encoder does not fit the U-Net.

  The encoder's width must be the one that the U-Net attends to, and likewise the width of the pooled text.
  """
  check_facts(folder, ("the text encoder's width", text.shapes["text"][-1], unet.text_dim),
              ("the width of the pooled text", text.shapes.get("pooled", (0,))[-1], unet.pooled_dim))


def check_facts(folder: Path, *facts: tuple[str, Any, Any]) -> None:
  """Raises CheckpointError for the first fact whose values differ.

  A fact is (name, value, expected value).
  """
  for name, value, expected in facts:
    if value != expected:
      raise CheckpointError(f"{folder}: {name} is {shown(value)}, expected {expected}")


def positive_integer(path: Path, key: str, value: Any) -> int:
  """Returns `value` if it is a positive integer of at most MAX_SIDE.

  Raises CheckpointError otherwise.
  """
  if not whole(1, MAX_SIDE).test(value):
    raise CheckpointError(f"{path}: {key}={shown(value)} should be a positive integer, at most {MAX_SIDE}")
  return value
