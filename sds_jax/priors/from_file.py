"""Composes a prior's folder from a single-file checkpoint: Stable Diffusion 1.x, 2.x, XL, Zero-1-to-3 and MVDream.

The kind of model is recognised by the names of the tensors, and the configurations follow from their shapes. What no
tensor tells has a setting: what a Stable Diffusion 2.x predicts, and whether averaged weights (EMA) are taken.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from sds_jax.priors.base import Config, Options
from sds_jax.priors.families.stable_diffusion import SD_SCHEDULER
from sds_jax.priors.loading import inferred_configs, ldm_names
from sds_jax.priors.loading.clip_vocabulary import END, tokenizer_files
from sds_jax.priors.loading.composed import Composed, StoredWeights
from sds_jax.priors.loading.files import CheckpointError, read_json
from sds_jax.priors.loading.inferred_configs import Shapes
from sds_jax.priors.loading.ldm_names import LdmName, Rule
from sds_jax.priors.loading.single_files import describe_file, kind_of
from sds_jax.priors.loading.stored import Stored
from sds_jax.priors.loading.tensor_files import Tensor, open_tensors

_SCHEDULER_FILE = "scheduler/scheduler_config.json"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
AVERAGES = "model_ema."
"""Beginnings of the names of tensors in a single file."""

_SCHEDULER: dict[str, Any] = SD_SCHEDULER | dict(
  _class_name="DDIMScheduler", clip_sample=False, set_alpha_to_one=False, steps_offset=1, trained_betas=None)
_TRAINED_AT = {"SD1": 64, "SD2": 64, "SD2 v": 96, "SDXL": 128, "Zero123": 32, "MVDream": 32}
"""Height and width of the latents of the published models."""


@dataclasses.dataclass(frozen=True)
class Part:
  """A network of a single file.

  Attributes:
    folder: of the component in diffusers' layout.
    prefix: beginning of the names of its tensors.
    config: content of its config.json.
    rule: from names of diffusers or transformers to names in the file.
    unused: whether a tensor below the prefix, named without it, is no parameter of the network.
  """
  folder: str
  prefix: str
  config: Mapping[str, Any]
  rule: Rule
  unused: Callable[[str], bool] = lambda name: False


def compose(path: Path, options: Options) -> Composed:
  """Returns the folder in memory of a single-file checkpoint; reads no tensor.

  Args:
    path: of the file, safetensors or torch's archive.
    options: `prediction_type`, `ema` and `config` are used.

  Raises:
    CheckpointError: the file is no whole model of a supported kind, or a setting is missing or has no effect.
  """
  tensors = open_tensors(path)
  kind = kind_of({name: tensor.shape for name, tensor in tensors.items()})
  if kind is None:
    raise CheckpointError(describe_file(path, tensors))
  given = _given(options.config)
  stored_scheduler = read_json(given[_SCHEDULER_FILE]) if _SCHEDULER_FILE in given else {}
  asked = options.prediction_type or stored_scheduler.get("prediction_type", "")
  prediction = _prediction(path, kind, tensors, asked)
  try:
    parts = _PARTS[kind](tensors, lambda name: read_json(given[f"{name}/config.json"])
                         if f"{name}/config.json" in given else None)
  except CheckpointError as error:
    raise CheckpointError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
  size = _TRAINED_AT["SD2 v" if kind == "SD2" and prediction == "v_prediction" else kind]
  # The published autoencoder of SDXL overflows in float16, which no tensor tells.
  scale = dict(scaling_factor=0.13025, force_upcast=True) if kind == "SDXL" else dict(scaling_factor=0.18215)
  added = {"unet": dict(sample_size=size), "vae": dict(sample_size=8 * size, **scale)}
  entries: dict[str, bytes | Path] = {"model_index.json": _json(_INDEX[kind])}
  scheduler = (stored_scheduler or _SCHEDULER) | dict(prediction_type=prediction)
  scheduler |= dict(rescale_betas_zero_snr=True, timestep_spacing="trailing") if "ztsnr" in tensors else {}
  for folder, pad in _TOKENIZERS[kind].items():
    if not any(name.startswith(f"{folder}/") for name in given):
      entries |= {f"{folder}/{name}": content for name, content in tokenizer_files(pad).items()}
  for part in parts:
    entries[f"{part.folder}/config.json"] = _json({**part.config, **added.get(part.folder, {})})
  entries |= given | {_SCHEDULER_FILE: _json(scheduler)}
  if options.ema and not _has_averages(tensors):
    raise CheckpointError(f"{path} has no averaged weights (model_ema.*): set config.prior.ema (--ema) to False for "
                          "the weights that it has, which may be averages already")
  weights = {part.folder: stored_weights(path, tensors, part, options.ema and part.folder == "unet") for part in parts}
  notes = () if options.ema or not _has_averages(tensors) else (
    f"{path} also has averaged weights, which are not used; config.prior.ema=True takes them",)
  return Composed(path, entries, weights, notes=notes)


def stored_weights(path: Path, tensors: Mapping[str, Tensor], part: Part, averages: bool = False) -> StoredWeights:
  """Returns the weights of a part of a file, under the names of diffusers.

  Args:
    path: of the file.
    tensors: of the file.
    part: the network.
    averages: whether the averages of the parameters are taken (EMA).
  """
  def key_of(name: LdmName) -> str:
    return ldm_names.average_key(name.key) if averages else part.prefix + name.key

  def find(names: Iterable[str]) -> dict[str, Stored]:
    places = {name: part.rule(name) for name in names}
    stored = {name: _stored(path, key_of(place), tensors[key_of(place)], place)
              for name, place in places.items() if key_of(place) in tensors}
    known = {place.key for place in places.values()}
    below = ((key, key.removeprefix(part.prefix)) for key in tensors if key.startswith(part.prefix))
    return stored | {rest: Stored(path, key, tensors[key].shape, tensors[key].read, tensors[key].dtype)
                     for key, rest in below if rest not in known and not part.unused(rest)}

  def label(name: str) -> str:
    try:
      return f"{key_of(part.rule(name))} ({name})"
    except (LookupError, TypeError):  # a name of the file
      return part.prefix + name

  return StoredWeights(path, find, label)


def _stored(path: Path, key: str, tensor: Tensor, place: LdmName) -> Stored:
  if place.third is None and not place.transposed:
    return Stored(path, key, tensor.shape, tensor.read, tensor.dtype)

  def read() -> np.ndarray:
    # A copy, so that the whole of a stacked tensor is freed.
    return np.ascontiguousarray(place.part(tensor.read()))

  return Stored(path, key, place.part_shape(tensor.shape), read, tensor.dtype)


def below(tensors: Mapping[str, Tensor], prefix: str) -> Shapes:
  """Returns {name without prefix: shape} of the tensors whose names begin with the prefix."""
  return {name.removeprefix(prefix): tensor.shape for name, tensor in tensors.items() if name.startswith(prefix)}


def unet_part(tensors: Mapping[str, Tensor], given: Config | None = None, prefix: str = UNET) -> Part:
  """Returns the U-Net of a file with original names; its config.json is the given one, or follows from the shapes."""
  config = given or inferred_configs.unet_config(below(tensors, prefix))
  attending = frozenset(i for i, kind in enumerate(config.get("up_block_types", ())) if "CrossAttn" in kind)
  return Part("unet", prefix, config, ldm_names.unet_rule(config.get("layers_per_block", 2), attending))


def vae_part(tensors: Mapping[str, Tensor], given: Config | None = None, prefix: str = VAE) -> Part:
  """Returns the autoencoder of a file with original names; its training's loss and averages are left out."""
  config = given or inferred_configs.vae_config(below(tensors, prefix))
  return Part("vae", prefix, config, ldm_names.vae_rule(len(config.get("block_out_channels", ()))),
              lambda name: name.startswith(("loss.", "model_ema.")))


def _clip_text(tensors: Mapping[str, Tensor], given: Config | None, folder: str, prefix: str) -> Part:
  shapes = below(tensors, prefix)
  # Writers differ in whether the wrapper is part of the names.
  wrapped = any(name.startswith("text_model.") for name in shapes)
  rule = ldm_names.same_rule if wrapped else lambda name: LdmName(name.removeprefix("text_model."))
  return Part(folder, prefix, given or inferred_configs.clip_text_config(shapes), rule,
              lambda name: name.endswith("embeddings.position_ids"))


def _open_clip(tensors: Mapping[str, Tensor], given: Config | None, folder: str, prefix: str, pooled: bool) -> Part:
  """Returns a text encoder with OpenCLIP's names.

  Args:
    tensors, folder, prefix: as in `Part`.
    given: content of its config.json, or None.
    pooled: whether the pooled text is used, so all layers. Else the last layer that OpenCLIP's own file has is not.
  """
  shapes = below(tensors, prefix)
  config = given or inferred_configs.open_clip_text_config(shapes)
  # Files converted from diffusers' format lack the last layer, and these two as well.
  if not given and not pooled and ("text_projection" in shapes or "logit_scale" in shapes):
    config = config | dict(num_hidden_layers=config["num_hidden_layers"] - 1)
  unused = ("logit_scale", "attn_mask", *(() if pooled else ("text_projection",)))
  first_unused = f"transformer.resblocks.{config.get('num_hidden_layers')}."
  return Part(folder, prefix, config, ldm_names.clip_rule,
              lambda name: name in unused or name.startswith(first_unused))


Given = Callable[[str], Config | None]
"""(folder of a component) -> the content of its config.json where the user gives one, else None."""


def _sd1(tensors: Mapping[str, Tensor], given: Given) -> list[Part]:
  return [unet_part(tensors, given("unet")), vae_part(tensors, given("vae")),
          _clip_text(tensors, given("text_encoder"), "text_encoder", "cond_stage_model.transformer.")]


def _sd2(tensors: Mapping[str, Tensor], given: Given) -> list[Part]:
  return [unet_part(tensors, given("unet")), vae_part(tensors, given("vae")),
          _open_clip(tensors, given("text_encoder"), "text_encoder", "cond_stage_model.model.", pooled=False)]


def _sdxl(tensors: Mapping[str, Tensor], given: Given) -> list[Part]:
  second = _open_clip(tensors, given("text_encoder_2"), "text_encoder_2", "conditioner.embedders.1.model.", pooled=True)
  config = {**second.config, "architectures": ["CLIPTextModelWithProjection"]}
  return [unet_part(tensors, given("unet")), vae_part(tensors, given("vae")),
          _clip_text(tensors, given("text_encoder"), "text_encoder", "conditioner.embedders.0.transformer."),
          dataclasses.replace(second, config=config)]


def _zero123(tensors: Mapping[str, Tensor], given: Given) -> list[Part]:
  prefix = "cond_stage_model.model.visual."
  vision = given("image_encoder") or inferred_configs.clip_vision_config(below(tensors, prefix))
  projection = inferred_configs.pose_projection_config(below(tensors, "cc_projection."))
  return [unet_part(tensors, given("unet")), vae_part(tensors, given("vae")),
          Part("image_encoder", prefix, vision, ldm_names.clip_rule),
          Part("cc_projection", "cc_projection.", given("cc_projection") or projection,
               lambda name: LdmName(name.removeprefix("projection.")))]


_PARTS: Mapping[str, Callable[[Mapping[str, Tensor], Given], list[Part]]] = {
  "SD1": _sd1, "SD2": _sd2, "SDXL": _sdxl, "Zero123": _zero123, "MVDream": _sd2}
_TOKENIZERS: Mapping[str, Mapping[str, str]] = {
  "SD1": {"tokenizer": END}, "SD2": {"tokenizer": "!"}, "SDXL": {"tokenizer": END, "tokenizer_2": "!"}, "Zero123": {},
  "MVDream": {"tokenizer": "!"}}
"""{kind: {folder of a tokenizer: its padding}}."""


def _index(name: str, **more: Any) -> dict[str, Any]:
  return dict(_class_name=name, scheduler=["diffusers", "DDIMScheduler"], unet=["diffusers", "UNet2DConditionModel"],
              vae=["diffusers", "AutoencoderKL"], **more)


_TEXT = dict(text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
             feature_extractor=[None, None])
_INDEX: Mapping[str, Mapping[str, Any]] = {
  "SD1": _index("StableDiffusionPipeline", **_TEXT, safety_checker=[None, None], requires_safety_checker=False),
  "SD2": _index("StableDiffusionPipeline", **_TEXT, safety_checker=[None, None], requires_safety_checker=False),
  "SDXL": _index("StableDiffusionXLPipeline", **_TEXT, image_encoder=[None, None],
                 text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
                 tokenizer_2=["transformers", "CLIPTokenizer"], force_zeros_for_empty_prompt=True),
  "MVDream": _index("MVDreamPipeline", **_TEXT, image_encoder=[None, None], requires_safety_checker=False),
  # The original code resizes photos as this class does.
  "Zero123": _index("Zero1to3StableDiffusionPipeline", image_encoder=["transformers", "CLIPVisionModelWithProjection"],
                    cc_projection=["pipeline_zero1to3", "CCProjection"], safety_checker=[None, None],
                    feature_extractor=[None, None], requires_safety_checker=False)}


def _json(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=2) + "\n").encode()


def _prediction(path: Path, kind: str, tensors: Mapping[str, Tensor], asked: str) -> str:
  """Returns what the U-Net predicts.

  Raises:
    CheckpointError: the model is one of Stable Diffusion 2.x, whose files do not tell, and no setting says it.
  """
  if asked:
    return asked
  if kind == "SD2":
    raise CheckpointError(f"{path} is a checkpoint of Stable Diffusion 2.x, and no tensor tells what its U-Net "
                          "predicts: set config.prior.prediction_type (--prediction_type) to 'v_prediction' for a "
                          "model of 768 pixels, or to 'epsilon' for a base model of 512 pixels")
  # A mark of SDXL's fine-tunes with v-prediction.
  return "v_prediction" if "v_pred" in tensors else "epsilon"


def _has_averages(tensors: Iterable[str]) -> bool:
  return any(name.startswith(f"{AVERAGES}diffusion_model") for name in tensors)


def _given(config: str) -> dict[str, Path]:
  """Returns {path below the folder: file} of the small files in a folder of configurations, which replace ours."""
  if not config:
    return {}
  folder = Path(config).expanduser()
  if not folder.is_dir():
    raise CheckpointError(f"config.prior.config={config!r} is no folder: name one in diffusers' format, whose "
                          "config.json files describe the networks of the single file")
  return {f"{path.parent.name}/{path.name}": path for path in sorted(folder.glob("*/*"))
          if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json")}
