"""Records of a prior: the prior itself, its weights, and the family that opens both."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import flax.linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from sds_jax.priors.controlnets import ControlNetChoice
from sds_jax.priors.loading.additions import Additions, read_additions
from sds_jax.priors.loading.checkpoint import abstract_params
from sds_jax.priors.loading.hub import Files
from sds_jax.priors.loading.source import Source
from sds_jax.priors.photo import PhotoConditioning
from sds_jax.types import Array, Camera, DenoiseFn, EncodeFn, Params, Schedule
from sds_jax.views import cameras

Cond = Mapping[str, Array]
"""Conditions of B images, leaves [B, ...]. Today's families have `text` [B, T, D], the tokens for cross-attention (of
a prompt, or of a photo and a pose); perhaps `pooled` [B, P], one vector of the whole prompt; perhaps `time_ids` [B, 6]
beside `pooled`, in place of `Prior.time_ids`; perhaps `camera` [B, camera_dim] (zeros: unknown); `x` [B, *x_shape] of
the photo, for a prior that is conditioned on a photo (zeros: no photo); and `control` [B, image_size, image_size, 3] in
[0, 1], for a prior with a ControlNet."""

Config = Mapping[str, Any]
"""The content of a config.json, scheduler_config.json or model_index.json."""


class PromptError(ValueError):
  """A prompt that the prior does not understand.

  Attributes:
    view_words: whether the prior understands the prompt, but not the view words that the job appends.
  """

  def __init__(self, message: str, view_words: bool = False):
    super().__init__(message)
    self.view_words = view_words


def accept_any_prompt(prompt: str, view_words: bool = False) -> None:
  """Accepts every prompt: the check of a prior that knows a natural language."""
  del prompt, view_words


@dataclasses.dataclass(frozen=True)
class Prior:
  """A frozen diffusion model of images, without its parameters.

  Attributes:
    name: the name, hub id or folder that the prior was opened by.
    image_size: height and width of its images.
    x_shape: shape of one x, the array that the prior diffuses.
    x_bound: upper bound of |x| over all images; None for latents, which have no bound.
    schedule: the noise schedule of its training.
    prediction_type: output of its network: "epsilon", "v_prediction" or "sample" (`denoise` always returns eps).
    embed: (prompts: n strings) -> the conditions of the prompts, a mapping with leaves [n, ...] float32; {"text":
      [n, T, D]} in families with cross-attention, and in SDXL "pooled": [n, P] as well. Reads the text
      encoder from the prior's folder, or the embeddings from the cache, so not for use under jit. Raises ValueError
      for a word outside the vocabulary; warns when a prompt is cut.
    encode: (params, image [B, H, H, 3] in [0, 1], key) -> x [B, *x_shape] float32; images of other sizes are resized.
      A pixel-space prior uses neither params nor key; a latent prior consumes the key.
    decode: (params, x [B, *x_shape]) -> image [B, image_size, image_size, 3] in [0, 1].
    denoise: (params, z_t [B, *x_shape], t [B] integer, cond) -> eps_hat, shaped like z_t.
    source: where its files come from.
    photo: how the prior is conditioned on a photo, in which case `embed` raises ValueError; None: on a prompt.
    vocabulary: the words that the prior knows, or None for a prior that knows a natural language.
    check_prompt: (prompt, view_words=False) -> None. Raises PromptError for an object's description that the prior
      does not understand. view_words: whether the job will append words for the view ("front view").
    camera_dim: length of the camera features among its conditions; 0: the prior takes no camera.
    ray_dim: channels of rays that `denoise` computes from the camera features and adds to the network's input; 0: none.
    predict: like `denoise`, but returns the network's output, of `prediction_type`, as sampling needs at alpha = 0,
      where eps does not tell x0; None: only `denoise` is known.
    notes: lines for the log: what opening decided where the files leave a choice or contradict each other.
    time_ids: the sizes and the crop that the network takes beside the pooled text (`SizeConditions.time_ids`), where
      the conditions have none of their own; None: the network takes none.
    control: kind of the images among its conditions that its ControlNet reads, "depth", "normal" or "image" (another
      kind); "": the prior has no ControlNet.
    views: number of views of an object that `denoise` looks at together, 90 degrees apart if 4: a batch consists of
      groups of so many neighbours, which share t.
    camera_features: (cameras, leaves [B, ...]) -> the camera features [B, camera_dim] among its conditions.
  """
  name: str
  image_size: int
  x_shape: tuple[int, ...]
  x_bound: float | None
  schedule: Schedule
  prediction_type: str
  embed: Callable[[Sequence[str]], Cond]
  encode: EncodeFn
  decode: Callable[[Params, Array], Array]
  denoise: DenoiseFn
  source: Source
  photo: PhotoConditioning | None = None
  vocabulary: frozenset[str] | None = None
  check_prompt: Callable[..., None] = accept_any_prompt
  camera_dim: int = 0
  ray_dim: int = 0
  predict: DenoiseFn | None = None
  notes: tuple[str, ...] = ()
  time_ids: tuple[int, ...] | None = None
  control: str = ""
  views: int = 1
  camera_features: Callable[[Camera], Array] = cameras.camera_features


@dataclasses.dataclass(frozen=True)
class Weights:
  """A prior's parameters before they are loaded.

  Attributes:
    networks: {name: linen module}, the networks of the parameters.
    dtype: dtype of the parameters.
    load: (put=jax.device_put) -> the parameters {name: tree}, read or drawn; each array goes through `put` as soon as
      it exists, and the host keeps no copy.
  """
  networks: Mapping[str, nn.Module]
  dtype: Any
  load: Callable[..., Params]

  @property
  def shapes(self) -> Params:
    """Returns the tree of `jax.ShapeDtypeStruct`; allocates nothing."""
    return {name: network_shapes(network, self.dtype) for name, network in self.networks.items()}


def network_shapes(network: nn.Module, dtype: Any) -> Params:
  """Returns the tree of a network's parameters in `dtype`, as `jax.ShapeDtypeStruct`."""
  flat = abstract_params(network)
  return traverse_util.unflatten_dict({path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in flat.items()})


@dataclasses.dataclass(frozen=True)
class SizeConditions:
  """The sizes and the crop that SDXL's network is conditioned on (arXiv:2307.01952, section 2.2), pixels.

  Attributes:
    original_size: height and width of the photo before it was resized for training; 0: the size of the prior's images.
    crop: rows and columns that were cut off at the top and at the left.
    target_size: height and width that the photo was resized and cropped to; 0: the size of the prior's images.
  """
  original_size: tuple[int, int] = (0, 0)
  crop: tuple[int, int] = (0, 0)
  target_size: tuple[int, int] = (0, 0)

  def time_ids(self, image_size: int) -> tuple[int, ...]:
    """Returns the six numbers in the order of the network's input, for a prior of images of this size.

    >>> SizeConditions(crop=(0, 8)).time_ids(512)
    (512, 512, 0, 8, 512, 512)
    """
    original, target = (tuple(side or image_size for side in size) for size in (self.original_size, self.target_size))
    return (*original, *self.crop, *target)


@dataclasses.dataclass(frozen=True)
class Options:
  """The caller's choices in opening a prior.

  Attributes:
    dtype: of parameters and of the networks' activations; inputs and outputs of `Prior`'s functions are float32.
    any_words: whether a prior with a vocabulary accepts prompts with other words.
    vae_remat: whether the gradient through the VAE's encoder recomputes the inside of its blocks: less memory, slower.
    image_size: height and width of the images of a prior of latents; 0: those of the files.
    variant: of the weight files, as in `<stem>.<variant>.safetensors`; "": the files without a variant first.
    sizes: of a prior that is conditioned on sizes (SDXL).
    prediction_type: what the U-Net of a single file predicts, "epsilon" or "v_prediction"; "": as the file tells.
    ema: whether the averaged weights (EMA) of a single file are taken.
    config: folder in diffusers' format whose small files describe a single file; "": the file's shapes do.
    unet, vae: file or folder of a U-Net or an autoencoder in place of the prior's own; "": its own.
    controlnet: the ControlNet that joins the U-Net; None: none.
    lora: LoRA files and their scales, see `file_lists.parse_loras`.
    embeddings: textual inversions and their tokens, see `file_lists.parse_embeddings`.
  """
  dtype: Any = jnp.float32
  any_words: bool = False
  vae_remat: bool = False
  image_size: int = 0
  variant: str = ""
  sizes: SizeConditions = SizeConditions()
  prediction_type: str = ""
  ema: bool = False
  config: str = ""
  unet: str = ""
  vae: str = ""
  controlnet: ControlNetChoice | None = None
  lora: Any = ()
  embeddings: Any = ()

  @functools.cached_property
  def additions(self) -> Additions:
    """The LoRAs and the textual inversions, read from their files' headers. Errors are those of `read_additions`."""
    return read_additions(self.lora, self.embeddings)


@dataclasses.dataclass(frozen=True)
class Published:
  """A published prior.

  Attributes:
    repos: repositories on the hub with the same weights, the likeliest first.
    configs: {component: content of its config.json} of its networks by `checkpoint.COMPONENTS`' names, and `scheduler`.
    former: repositories with the same weights that are gone; caches may still have them.
  """
  repos: tuple[str, ...]
  configs: Mapping[str, Config]
  former: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
  """A kind of prior.

  How its folders are recognised, which files they have, and how they are opened.

  Attributes:
    name: for messages.
    layout: the folders that `matches` accepts, for the error that lists the supported ones.
    matches: (model_index.json) -> whether a folder is of this family. At most one family matches a folder.
    files: (model_index.json) -> the files that `open` and the text encoder read.
    open: (source, model_index.json, options) -> the prior and its weights; reads no weights. Raises CheckpointError
      when a file is missing or damaged, or when parts do not fit each other; ValueError for unsupported settings.
    random: (source, configs, options) -> a prior of a published prior's shapes with random weights; reads no file.
      None: the family has no published shapes.
    published: {name: published prior}.
    shipped: {name: folder below `sds_jax`} of the priors in this package.
    takes_photo: whether the priors are conditioned on a photo and a pose in place of a prompt.
    takes_additions: names of the networks that LoRAs and new tokens may change, as `lora_names` has them; `open` passes
      `Options.additions` to these.
    small: whether the priors are of ShapeWorld's size, for which training has settings of its own.
    takes_controlnet: whether `open` and `random` take `Options.controlnet`.
    views: number of views of an object that the priors look at together, unless their model_index.json has `views`.
  """
  name: str
  layout: str
  matches: Callable[[Config], bool]
  files: Callable[[Config], Files]
  open: Callable[[Source, Config, Options], tuple[Prior, Weights]]
  random: Callable[[Source, Mapping[str, Config], Options], tuple[Prior, Weights]] | None = None
  published: Mapping[str, Published] = dataclasses.field(default_factory=dict)
  shipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
  takes_photo: bool = False
  takes_additions: tuple[str, ...] = ()
  small: bool = False
  takes_controlnet: bool = False
  views: int = 1
