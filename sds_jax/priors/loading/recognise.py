"""Recognises published models that no family opens, by pipeline class, network class, input channels or hub id.

The names are those of diffusers' classes and of the publishers' repositories. Nothing is fetched or run.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
import re
from typing import Any

_FLOW = "a transformer trained by flow matching"

_PIPELINES: tuple[tuple[str, str], ...] = (
  (r"StableDiffusion3", f"Stable Diffusion 3, {_FLOW}"),
  (r"Flux2?(?![a-z])", f"FLUX, {_FLOW}"),
  (r"PixArt", "PixArt, a diffusion transformer"),
  (r"Zero123Plus", "Zero123++, which draws six views as one image"),
  (r"MVDiffusionImage|Wonder3D", "Wonder3D, which draws colours and normals of six views"),
  (r"ImageDream", "ImageDream, four views of a photo"),
  (r"MVDream", "MVDream, four views of one object"),
  (r"StableVideo|TextToVideo|VideoToVideo|AnimateDiff|CogVideo|Wan(?![a-z])|LTX|Hunyuan.*Video|Mochi|Latte|I2VGen"
   r"|Allegro|EasyAnimate|Cosmos|SkyReels|TextToVideoZero", "a model of videos"),
  (r"Audio|Music|Spectrogram|DanceDiffusion", "a model of sound"),
  (r"StableDiffusionXLInpaint", "an inpainting model of Stable Diffusion XL, whose U-Net takes a mask besides"),
  (r"StableDiffusionXLInstructPix2Pix", "an editing model of Stable Diffusion XL, whose U-Net takes an image besides"),
  (r"StableDiffusionXLImg2Img", "the refiner of Stable Diffusion XL, which works on low noise only"),
  (r"StableDiffusionXL", "Stable Diffusion XL"),
  (r"(?!IF).*Inpaint|PaintByExample", "an inpainting model, whose U-Net takes a mask and an image besides"),
  (r"InstructPix2Pix", "InstructPix2Pix, whose U-Net takes the image that is edited besides"),
  (r"ImageVariation", "Stable Diffusion image variations, conditioned on a photo without a pose"),
  (r".*Upscale", "an upscaler, whose U-Net takes a small image besides"),
  (r"Depth2Img", "a depth-to-image model, whose U-Net takes a depth map besides"),
  (r"LDM3D", "a model of images and their depth"),
  (r"StableUnCLIP|UnCLIP", "unCLIP, conditioned on an embedding of an image"),
  (r"IF\w*SuperResolution|IFImg2Img|IFInpaint", "a later stage of DeepFloyd IF, which takes an image besides"),
  (r"LatentConsistency", "a latent consistency model, whose U-Net takes the guidance scale"),
  (r"Kandinsky", "Kandinsky, whose U-Net is conditioned on an embedding of an image"),
  (r"Wuerstchen|StableCascade", "Wuerstchen or Stable Cascade, stages of another compression"),
  (r"Onnx|ORT", "a folder of ONNX programs"),
  (r"Flax", "a folder of msgpack weights for Flax"),
  (r"DiT(?![a-z])|HunyuanDiT|Sana|AuraFlow|Lumina|QwenImage|Chroma|HiDream|OmniGen|ZImage|CogView|Bria|Kolors|VisualCloze",
   "a diffusion transformer or another design of text-to-image model"),
  (r"(DDPM|DDIM|PNDM|LDM|ScoreSde\w*|KarrasVe|ConsistencyModel|LDMSuperResolution)Pipeline",
   "a model of images without a text"),
  (r"LDMTextToImage|VersatileDiffusion|AltDiffusion|BlipDiffusion|GLIGEN|ShapE|Amused|SemanticStableDiffusion",
   "a model with another text encoder or other conditions"),
)
"""(pattern of the beginning of a pipeline's class, perhaps behind "StableDiffusion", the kind); the first that matches
counts."""

_NETWORKS: dict[str, str] = {
  "SD3Transformer2DModel": "the transformer of Stable Diffusion 3", "FluxTransformer2DModel": "the transformer of FLUX",
  "PixArtTransformer2DModel": "the transformer of PixArt", "Transformer2DModel": "a diffusion transformer",
  "DiTTransformer2DModel": "a diffusion transformer", "ControlNetModel": "a ControlNet",
  "FluxControlNetModel": "a ControlNet of FLUX", "SD3ControlNetModel": "a ControlNet of Stable Diffusion 3",
  "AutoencoderTiny": "a small autoencoder (TAESD)", "AutoencoderKL": "an autoencoder (VAE)",
  "UNet2DConditionModel": "a U-Net", "UNetMV2DConditionModel": "the U-Net of Wonder3D",
  "MultiViewUNetModel": "the U-Net of MVDream", "UNetSpatioTemporalConditionModel": "the U-Net of a model of videos",
  "UNet3DConditionModel": "the U-Net of a model of videos", "MotionAdapter": "a motion module for videos",
  "CLIPTextModel": "a text encoder", "T5EncoderModel": "a text encoder",
  "CLIPVisionModelWithProjection": "an image encoder"}
"""Class of a network in a config.json -> the kind."""

_CHANNELS: dict[int, str] = {
  5: "a depth-to-image model, whose U-Net takes a depth map besides",
  7: "an upscaler, whose U-Net takes a small image besides",
  8: "a model whose U-Net takes an image besides, such as InstructPix2Pix",
  9: "an inpainting model, whose U-Net takes a mask and an image besides"}
"""Input channels of a U-Net in a folder of Stable Diffusion -> the kind."""

_HUB_IDS: tuple[tuple[str, str], ...] = (
  (r".*/stable-diffusion-3(\.5)?-.*", f"Stable Diffusion 3, {_FLOW}"),
  (r".*/FLUX\.[12]-.*", f"FLUX, {_FLOW}"),
  (r"PixArt-alpha/.*", "PixArt, a diffusion transformer"),
  (r".*/zero123plus[-.\w]*", "Zero123++, which draws six views as one image"),
  (r"flamehaze1115/wonder3d[-.\w]*", "Wonder3D, which draws colours and normals of six views"),
  (r"ashawkey/imagedream[-.\w]*", "ImageDream, four views of a photo"),
  (r".*/stable-diffusion-xl-refiner[-.\w]*", "the refiner of Stable Diffusion XL, which works on low noise only"),
  (r".*/(stable-diffusion(-2)?|stable-diffusion-xl-1\.0|stable-diffusion-v1-5)-inpainting(-0\.1)?",
   "an inpainting model, whose U-Net takes a mask and an image besides"),
  (r"timbrooks/instruct-pix2pix", "InstructPix2Pix, whose U-Net takes the image that is edited besides"),
  (r"lambdalabs/sd-image-variations-diffusers",
   "Stable Diffusion image variations, conditioned on a photo without a pose"),
  (r"stabilityai/(stable-diffusion-x4-upscaler|sd-x2-latent-upscaler)",
   "an upscaler, whose U-Net takes a small image besides"),
  (r".*/stable-diffusion-2-depth", "a depth-to-image model, whose U-Net takes a depth map besides"),
  (r"stabilityai/stable-diffusion-2-1-unclip[-.\w]*", "unCLIP, conditioned on an embedding of an image"),
  (r"DeepFloyd/IF-II-.*", "a later stage of DeepFloyd IF, which takes an image besides"),
  (r"stabilityai/stable-video-diffusion.*", "a model of videos"),
  (r"stabilityai/stable-cascade.*|warp-ai/wuerstchen.*", "Wuerstchen or Stable Cascade, stages of another compression"),
  (r"kandinsky-community/.*", "Kandinsky, whose U-Net is conditioned on an embedding of an image"),
  (r"SimianLuo/LCM_.*", "a latent consistency model, whose U-Net takes the guidance scale"),
)
"""(pattern of a whole hub id, the kind)."""


TENSORS: tuple[tuple[str, str], ...] = (
  (r"double_blocks\.\d+\.img_attn_q", "HunyuanVideo"),
  (r"(^|\.)double_blocks\.|(^|\.)single_transformer_blocks\.", "FLUX"),
  (r"(^|\.)joint_blocks\.|(^|\.)transformer_blocks\.\d+\.attn\.add_[qkv]_proj\.", "Stable Diffusion 3"),
  (r"(^|\.)adaln_single\.|(^|\.)blocks\.\d+\.cross_attn\.(q|kv)_linear\.", "PixArt"),
  (r"(^|\.)blocks\.\d+\.self_attn\.norm_[qk]\.|time_stack\.|temporal_transformer_blocks\.|motion_modules\.",
   "a model of videos"),
  (r"attn_joint_(mid|last)\.", "Wonder3D"),
  (r"(^|\.)image_embed\.(latents|layers)", "ImageDream"),
  (r"^conditioner\.embedders\.0\.model\.", "the refiner of Stable Diffusion XL"),
  (r"^noise_augmentor\.|^embedder\.model\.visual\.", "unCLIP"),
  (r"(^|\.)clip_txt_(pooled_)?mapper\.", "Stable Cascade"),
)
"""(pattern of a tensor's name in a file of weights, the kind); the first that matches any name counts."""


def describe_pipeline(name: Any) -> str:
  """Returns what a pipeline's class of diffusers is, or "" for an unknown class.

  >>> describe_pipeline("StableDiffusion3Pipeline")
  'Stable Diffusion 3, a transformer trained by flow matching'
  """
  if not isinstance(name, str):
    return ""
  return next((kind for pattern, kind in _PIPELINES if re.match(rf"(StableDiffusion)?({pattern})", name)), "")


def describe_network(config: Mapping[str, Any]) -> str:
  """Returns what the network of a config.json is, or "" for an unknown one.

  >>> describe_network(dict(_class_name="FluxTransformer2DModel"))
  'the transformer of FLUX'
  """
  architectures = config.get("architectures")
  name = config.get("_class_name") or (architectures[0] if isinstance(architectures, list) and architectures else None)
  return _NETWORKS.get(name, "") if isinstance(name, str) else ""


def describe_tensor_names(names: Iterable[str]) -> str:
  """Returns of which model no family opens a file of weights with these tensors is, or "".

  >>> describe_tensor_names(["model.diffusion_model.double_blocks.0.img_mod.lin.weight"])
  'FLUX'
  """
  names = list(names)
  return next((kind for pattern, kind in TENSORS if any(map(re.compile(pattern).search, names))), "")


def describe_channels(in_channels: int) -> str:
  """Returns what a folder of Stable Diffusion is whose U-Net has that many input channels, or ""."""
  return _CHANNELS.get(in_channels, "")


def describe_hub_id(repo: str) -> str:
  """Returns what a published repository holds if no family opens it, or "".

  >>> describe_hub_id("sudo-ai/zero123plus-v1.2")
  'Zero123++, which draws six views as one image'
  """
  return next((kind for pattern, kind in _HUB_IDS if re.fullmatch(pattern, repo, re.IGNORECASE)), "")
