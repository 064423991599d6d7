"""Says what a file or a folder is that holds no prior's folder: a single-file checkpoint, a LoRA, one network.

Files are recognised by the names and shapes in their headers; no weight is read. The names are those of public
checkpoints in the formats of latent diffusion, diffusers, kohya and peft.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
from pathlib import Path
import re
import struct

from sds_jax.priors.loading.checkpoint import NO_PICKLES, PICKLES
from sds_jax.priors.loading.files import CheckpointError, check_file, check_header

SUFFIXES = (".safetensors", ".gguf", ".onnx", *PICKLES)
"""Endings of the names of weight files."""

Shapes = Mapping[str, tuple[int, ...]]
"""{name of a tensor: shape}."""

_WHOLE = ("single files are not read: convert it by diffusers' "
          "{pipeline}.from_single_file(FILE).save_pretrained(FOLDER) and name FOLDER")
_SINGLE = _WHOLE.format(pipeline="StableDiffusionPipeline")
_UNSUPPORTED = ("this kind of model is not supported; supported are Stable Diffusion 1.x and 2.x, DeepFloyd IF and "
                "Zero-1-to-3")
_ADDITION = ("an addition to a model and no model: merge it by diffusers' pipe.load_lora_weights(FILE), "
             "pipe.fuse_lora() and pipe.save_pretrained(FOLDER), and name FOLDER")
_PART = "a part of a model: name the folder of the whole model, with model_index.json"
_EMBEDDING = "an addition to a model and no model: name the folder of a whole model, with model_index.json"

# In this order: additions and unsupported models come first, as their names also match the patterns further down.
_KINDS: tuple[tuple[str, str, str], ...] = (
  (r"hada_w1|lokr_w1|dora_scale|oft_blocks|lora[._](up|down|[ABab])\b|lora_(unet|te\d?)_|_lora\.|lora_linear_layer",
   "a LoRA", _ADDITION),
  (r"^(emb_params|string_to_(param|token).*|clip_[lg]|<.*>)$", "a textual inversion", _EMBEDDING),
  (r"controlnet_cond_embedding|^control_model\.|input_hint_block|^controlnet_", "a ControlNet", _EMBEDDING),
  (r"^(ip_adapter|image_proj)\.", "an IP-Adapter", _EMBEDDING),
  (r"(^|\.)double_blocks\.", "a single-file checkpoint of FLUX", _UNSUPPORTED),
  (r"(^|\.)joint_blocks\.", "a single-file checkpoint of Stable Diffusion 3", _UNSUPPORTED),
  (r"^conditioner\.embedders\.", "a single-file checkpoint of Stable Diffusion XL", _UNSUPPORTED),
  (r"^cc_projection\.", "a single-file checkpoint of Zero-1-to-3",
   "single files are not read: name the folder of a converted copy, as ashawkey/zero123-xl-diffusers on the hub"),
  (r"^model\.diffusion_model\.camera_embed", "a single-file checkpoint of MVDream", _UNSUPPORTED),
  (r"^model\.diffusion_model\.", "a single-file checkpoint", _SINGLE),
  (r"^down_blocks\..*attn2\.", "a U-Net alone", _PART),
  (r"^(first_stage_model\.)?encoder\.(conv_in|down)", "an autoencoder (VAE) alone", _PART),
  (r"^(text_model\.|encoder\.block\.\d|transformer\.resblocks)", "a text encoder alone", _PART),
  (r"^vision_model\.", "an image encoder alone", _PART),
)
"""(pattern of a tensor's name, the kind of file, the remedy); the first that matches a name counts."""

_TEXT_WIDTH = re.compile(r"^model\.diffusion_model\.input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight$")
_VERSIONS = {768: " of Stable Diffusion 1.x", 1024: " of Stable Diffusion 2.x", 2048: " of Stable Diffusion XL"}


def describe_tensors(shapes: Shapes) -> tuple[str, str]:
  """Returns (the kind of a weight file, the remedy) by the names of its tensors.

  >>> describe_tensors({"lora_unet_mid_block.lora_down.weight": (4, 320)})[0]
  'a LoRA'
  """
  for pattern, kind, remedy in _KINDS:
    if not any(map(re.compile(pattern).search, shapes)):
      continue
    if remedy == _SINGLE:
      # The width of the text that the U-Net attends to tells the versions apart.
      width = next((shape[-1] for name, shape in shapes.items() if _TEXT_WIDTH.match(name) and shape), 0)
      channels = shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 4))[1:2]
      variant = {(8,): " (InstructPix2Pix or image variations)", (9,): " (inpainting)"}.get(tuple(channels), "")
      return f"{kind}{_VERSIONS.get(width, '')}{variant}", _UNSUPPORTED if variant or width == 2048 else remedy
    return kind, remedy
  return ("a file of weights of an unknown kind",
          "name the folder of a model in diffusers' format, with model_index.json")


def describe_file(path: Path) -> str:
  """Returns one line that says what a file is and what to do, beginning with its path.

  Raises:
    CheckpointError: the file is a failed download, a pipe, damaged, or no safetensors file at all.
  """
  check_file(path)
  with open(path, "rb") as file:
    head = file.read(4)
  if head == b"GGUF":
    return f"{path} is a GGUF file, which is not read: name the folder of a model in diffusers' format"
  # torch's archives begin with PK, and pickles of protocol 2 and later with the byte 0x80.
  if path.suffix in PICKLES or path.suffix != ".safetensors" and (head[:2] == b"PK" or head[:1] == b"\x80"):
    return f"{path} is a pickle; {NO_PICKLES}, and name the folder"
  if path.suffix != ".safetensors":
    return f"{path} is a file, expected a folder in diffusers' format, with model_index.json"
  kind, remedy = describe_tensors(_shapes(path))
  return f"{path} is {kind}; {remedy}" if not remedy.startswith(("an ", "a ")) else f"{path} is {kind}, {remedy}"


def describe_names(names: Iterable[str]) -> str:
  """Returns what the files of a folder or repository without model_index.json are, as "; it holds ...", or ""."""
  names = sorted(names)
  top = [name for name in names if "/" not in name]
  weights = [name for name in top if name.endswith(SUFFIXES)]
  listed = ", ".join(weights[:3]) + (", ..." if len(weights) > 3 else "")
  if any(re.search(r"^adapter_(config|model)|lora", name) for name in top):
    return f"; it holds a LoRA ({listed or 'adapter_config.json'}), {_ADDITION}"
  if any(name.startswith("learned_embeds") for name in top):
    return f"; it holds a textual inversion ({listed}), {_EMBEDDING}"
  if "config.json" in top and weights:
    return f"; it holds one network ({listed}), {_PART}"
  if weights:
    return f"; it holds single-file checkpoints ({listed}); {_SINGLE}"
  inside = [name for name in names if name.endswith("/model_index.json")]
  return f"; the folder {inside[0].removesuffix('/model_index.json')}/ in it has one: name that" if inside else ""


def describe_folder(folder: Path) -> str:
  """Returns what a folder without model_index.json holds, as "; it holds ...", or ""."""
  try:
    names = [path.name for path in folder.iterdir()]
    names += [f"{path.parent.name}/{path.name}" for path in folder.glob("*/model_index.json")]
    single = [name for name in names if name.endswith(".safetensors")]
    if len(single) == 1 and "config.json" not in names:
      return f"; {describe_file(folder / single[0])}"
  except (OSError, CheckpointError):
    return ""
  return describe_names(names)


def _shapes(path: Path) -> Shapes:
  """Returns the names and shapes in the header of a safetensors file."""
  check_header(path)
  with open(path, "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
  if not isinstance(header, dict):
    raise CheckpointError(f"{path} is damaged: its header is no JSON object")
  # The header's `__metadata__` is an entry without a shape.
  return {name: tuple(entry["shape"]) for name, entry in header.items()
          if isinstance(entry, dict) and isinstance(entry.get("shape"), list)}
