"""Says what a file or a folder is that is no prior's folder: a single-file checkpoint, a LoRA, one network.

Files are recognised by the names and shapes in their headers; no weight is read. The names are those of public
checkpoints in the formats of latent diffusion, diffusers, kohya and peft.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
import re

from sds_jax.priors.loading.files import CheckpointError, check_file
from sds_jax.priors.loading.recognise import TENSORS
from sds_jax.priors.loading.tensor_files import Tensor, open_tensors
from sds_jax.priors.loading.weight_files import PICKLES

SUFFIXES = (".safetensors", ".gguf", ".onnx", *PICKLES)
"""Endings of the names of weight files."""

Shapes = Mapping[str, tuple[int, ...]]
"""{name of a tensor: shape}."""

_UNSUPPORTED = ("this kind of model is not supported; supported are Stable Diffusion 1.x, 2.x and XL, DeepFloyd IF, "
                "Zero-1-to-3 and MVDream")
_ADDITION = ("an addition to a model and no model: name the model that it was trained on, and beside the model the "
             "file by config.prior.lora=FILE")
_TOKENS = ("an addition to a model and no model: name the model that it was trained on, and beside the model the file "
           "by config.prior.embeddings=FILE")
_PART = "a part of a model: name the folder or the single file of the whole model"
_UNET = ("a part of a model: name it by config.prior.unet=FILE, beside the whole model that it belongs to")
_VAE = ("a part of a model: name it by config.prior.vae=FILE, beside the whole model that it belongs to")
_EMBEDDING = "an addition to a model and no model: name the folder of a whole model, with model_index.json"
_CONTROLNET = ("an addition to a model and no model: name it by config.prior.controlnet=FILE, beside a model of Stable "
               "Diffusion 1.x")

# In this order: additions and unsupported models come first, as their names also match the patterns further down.
_KINDS: tuple[tuple[str, str, str], ...] = (
  (r"hada_w1|lokr_w1|dora_scale|oft_blocks|lora[._](up|down|[ABab])\b|lora_(unet|te\d?)_|_lora\.|lora_linear_layer",
   "a LoRA", _ADDITION),
  (r"^(emb_params|string_to_(param|token).*|clip_[lg]|<.*>)$", "a textual inversion", _TOKENS),
  (r"controlnet_cond_embedding|^control_model\.|input_hint_block|^controlnet_", "a ControlNet", _CONTROLNET),
  (r"^(ip_adapter|image_proj)\.", "an IP-Adapter", _EMBEDDING),
  *((pattern, f"a single-file checkpoint of {kind}", _UNSUPPORTED) for pattern, kind in TENSORS),
  (r"^conditioner\.embedders\.", "a single-file checkpoint of a part of Stable Diffusion XL", _UNSUPPORTED),
  (r"^model\.diffusion_model\.", "a single-file checkpoint", _UNET),
  (r"^(down|input)_blocks\..*attn2\.", "a U-Net alone", _UNET),
  (r"^(first_stage_model\.)?encoder\.(conv_in|down)", "an autoencoder (VAE) alone", _VAE),
  (r"^encoder\.layers\.0\.", "a tiny autoencoder (TAESD)", _VAE),
  (r"^\d+\.conv\.0\.", "half of a tiny autoencoder (TAESD)", "name both halves in one file, as "
   "diffusion_pytorch_model.safetensors of madebyollin/taesd, by config.prior.vae=FILE"),
  (r"^(text_model\.|encoder\.block\.\d|transformer\.resblocks)", "a text encoder alone", _PART),
  (r"^vision_model\.", "an image encoder alone", _PART),
)
"""(pattern of a tensor's name, the kind of file, the remedy); the first that matches a name counts."""

_TEXT_WIDTH = re.compile(r"^model\.diffusion_model\.input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight$")
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_NEEDED = {"autoencoder": "first_stage_model.", "text encoder": "cond_stage_model."}
_VERSIONS = {768: " of Stable Diffusion 1.x", 1024: " of Stable Diffusion 2.x", 2048: " of Stable Diffusion XL"}


def describe_tensors(shapes: Shapes) -> tuple[str, str]:
  """Returns (the kind of a weight file, the remedy) by the names of its tensors.

  >>> describe_tensors({"lora_unet_mid_block.lora_down.weight": (4, 320)})[0]
  'a LoRA'
  """
  for pattern, kind, remedy in _KINDS:
    if not any(map(re.compile(pattern).search, shapes)):
      continue
    if kind == "a single-file checkpoint":
      channels = shapes.get(_FIRST, (0, 4))[1:2]
      variant = {(8,): " (InstructPix2Pix or image variations)", (9,): " (inpainting)"}.get(tuple(channels), "")
      lacking = [words for words, prefix in _NEEDED.items() if not any(name.startswith(prefix) for name in shapes)]
      if lacking and not variant:
        return f"a single file without {' and '.join(lacking)}", _UNET
      # The width of the text that the U-Net attends to tells the versions apart.
      width = next((shape[-1] for name, shape in shapes.items() if _TEXT_WIDTH.match(name) and shape), 0)
      return f"{kind}{_VERSIONS.get(width, '')}{variant}", _UNSUPPORTED
    return kind, remedy
  return ("a file of weights of an unknown kind",
          "name the folder of a model in diffusers' format, with model_index.json")


def kind_of(shapes: Shapes) -> str | None:
  """Returns the kind of a single-file checkpoint that is read; None for others.

  The kinds are "SD1", "SD2", "SDXL", "Zero123" and "MVDream".

  >>> kind_of({"cc_projection.weight": (768, 772), "model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3),
  ...          "cond_stage_model.model.visual.proj": (1024, 768), "first_stage_model.decoder.conv_in.bias": (512,)})
  'Zero123'
  """
  def has(*prefixes: str) -> bool:
    return all(any(name.startswith(prefix) for name in shapes) for prefix in prefixes)

  channels = shapes.get(_FIRST, ())[1:2]
  if not has("first_stage_model.") or has("control_model.") or not channels:
    return None
  if "cc_projection.weight" in shapes and has("cond_stage_model.model.visual."):
    return "Zero123"
  if channels != (4,):
    return None
  if has("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."):
    return "SDXL"
  if has("model.diffusion_model.image_embed."):
    return None  # ImageDream, which also sees a photo
  if has("cond_stage_model.model.transformer."):
    return "MVDream" if has("model.diffusion_model.camera_embed.") else "SD2"
  return "SD1" if has("cond_stage_model.transformer.") else None


def describe_file(path: Path, tensors: Mapping[str, Tensor] | None = None) -> str:
  """Returns one line that says what a file is and what to do, beginning with its path.

  Args:
    path: of the file.
    tensors: of the file, where they are known already.

  Raises:
    CheckpointError: the file is a failed download, a pipe, damaged, or no file of weights at all.
  """
  if tensors is None:
    check_weights(path)
    tensors = open_tensors(path)
  kind, remedy = describe_tensors({name: tensor.shape for name, tensor in tensors.items()})
  return f"{path} is {kind}; {remedy}" if not remedy.startswith(("an ", "a ")) else f"{path} is {kind}, {remedy}"


def check_weights(path: Path) -> None:
  """Raises CheckpointError when a file is a failed download, a pipe, or of a format that is not read."""
  check_file(path)
  with open(path, "rb") as file:
    head = file.read(4)
  if head == b"GGUF":
    raise CheckpointError(f"{path} is a GGUF file, which is not read: name a file of safetensors, or a folder in "
                          "diffusers' format")
  # torch's archives begin with PK, and pickles of protocol 2 and later with the byte 0x80.
  if path.suffix not in SUFFIXES and head[:2] != b"PK" and head[:1] != b"\x80":
    raise CheckpointError(f"{path} is no file of weights: name a file of safetensors, or a folder in diffusers' format")


def describe_names(names: Iterable[str]) -> str:
  """Returns what the files of a folder or repository without model_index.json are, as "; it holds ...", or ""."""
  names = sorted(names)
  top = [name for name in names if "/" not in name]
  weights = [name for name in top if name.endswith(SUFFIXES)]
  listed = ", ".join(weights[:3]) + (", ..." if len(weights) > 3 else "")
  if any(re.search(r"^adapter_(config|model)|lora", name) for name in top):
    return f"; it holds a LoRA ({listed or 'adapter_config.json'}), {_ADDITION}"
  if any(name.startswith("learned_embeds") for name in top):
    return f"; it holds a textual inversion ({listed}), {_TOKENS}"
  if "config.json" in top and weights:
    return f"; it holds one network ({listed}), {_PART}"
  if weights:
    return f"; it holds single-file checkpoints ({listed}): name one of these files"
  inside = [name for name in names if name.endswith("/model_index.json")]
  return f"; the folder {inside[0].removesuffix('/model_index.json')}/ in it has one: name that" if inside else ""


def describe_folder(folder: Path) -> str:
  """Returns what a folder without model_index.json holds, as "; it holds ...", or ""."""
  try:
    names = [path.name for path in folder.iterdir()]
    names += [f"{path.parent.name}/{path.name}" for path in folder.glob("*/model_index.json")]
    single = [name for name in names if name.endswith(".safetensors")]
    if len(single) == 1 and "config.json" not in names:
      tensors = open_tensors(folder / single[0])
      if kind_of({name: tensor.shape for name, tensor in tensors.items()}):
        return f"; {folder / single[0]} in it is a whole model: name that file"
      return f"; {describe_file(folder / single[0], tensors)}"
  except (OSError, CheckpointError):
    return ""
  return describe_names(names)
