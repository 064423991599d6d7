"""Tiny networks of diffusers and transformers with what they give, for tests that run without torch.

    python tests/golden/make.py          (needs the `parity` extra)

writes a folder for each case beside this file, over the one that is there: the network as its library saves it, in
float16, and `reference.safetensors` with inputs (exact in float16) and outputs (float32; images are [B, H, W, C]).
Weights come from numpy, each by its name, so that neither versions of the libraries nor their order matter.
"""
import argparse
from pathlib import Path
import zlib

import numpy as np
from safetensors.numpy import save_file

UNET = dict(
  sample_size=4, in_channels=4, out_channels=4, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
  up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], block_out_channels=[4, 8], layers_per_block=1, norm_num_groups=2,
  cross_attention_dim=8)
CLIP = dict(
  vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
  max_position_embeddings=8, bos_token_id=18, eos_token_id=19, pad_token_id=19)
CASES = {
  "unet_sd1": ("UNet2DConditionModel", UNET | dict(attention_head_dim=2)),
  "unet_sd2": ("UNet2DConditionModel", UNET | dict(attention_head_dim=[1, 2], use_linear_projection=True)),
  "unet_if": ("UNet2DConditionModel", UNET | dict(
    in_channels=3, out_channels=6, down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    cross_attention_dim=32, attention_head_dim=4, act_fn="gelu", resnet_time_scale_shift="scale_shift",
    encoder_hid_dim=8, addition_embed_type="text", addition_embed_type_num_heads=2,
    cross_attention_norm="group_norm")),
  "unet_zero123": ("UNet2DConditionModel", UNET | dict(
    in_channels=8, attention_head_dim=2, block_out_channels=[4], down_block_types=["CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D"])),
  "vae": ("AutoencoderKL", dict(
    block_out_channels=[4, 8], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=2, sample_size=8)),
  "clip_quick_gelu": ("CLIPTextModel", CLIP | dict(hidden_act="quick_gelu")),
  "clip_gelu": ("CLIPTextModel", CLIP | dict(hidden_act="gelu")),
  "clip_vision": ("CLIPVisionModelWithProjection", dict(
    hidden_size=16, intermediate_size=32, projection_dim=8, num_hidden_layers=2, num_attention_heads=2, image_size=12,
    patch_size=4, hidden_act="quick_gelu")),
  "t5": ("T5EncoderModel", dict(
    vocab_size=20, d_model=16, d_kv=6, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
    relative_attention_num_buckets=8, relative_attention_max_distance=12, tie_word_embeddings=False)),
}
"""Folder -> (class, configuration). Styles: Stable Diffusion 1 and 2, the first stage of DeepFloyd IF, Zero-1-to-3,
T5 v1.1."""


def build(kind, config):
  """The network with weights that all matter (no zero bias, no unit scale) and are exact in float16."""
  import diffusers
  import torch
  import transformers
  if hasattr(transformers, kind):
    settings = getattr(transformers, kind.split("Model")[0].replace("Encoder", "") + "Config")
    model = getattr(transformers, kind)(settings(**config))
  else:
    model = getattr(diffusers, kind)(**config)
  for name, parameter in model.named_parameters():
    rng, shape = np.random.default_rng(zlib.crc32(name.encode())), tuple(parameter.shape)
    width = np.prod(shape[1:]) if len(shape) > 1 and "embed" not in name else 9
    value = rng.normal(size=shape) / np.sqrt(width) + (len(shape) == 1 and name.endswith("weight"))
    with torch.no_grad():
      parameter.copy_(torch.from_numpy(value.astype(np.float16).astype(np.float32)))
  return model.eval()


def turned(array):
  """[B, H, W, C] as torch's [B, C, H, W]."""
  import torch
  return torch.from_numpy(array.astype(np.float32).transpose(0, 3, 1, 2).copy())


def back(tensor):
  return np.ascontiguousarray(tensor.detach().numpy().transpose(0, 2, 3, 1))


def of_unet(model, rng):
  """Inputs and outputs of a U-Net."""
  import torch
  sample = rng.normal(size=(2, 4, 6, model.config.in_channels)).astype(np.float16)
  t, text = np.array([3, 977]), rng.normal(size=(2, 5, 8)).astype(np.float16)
  predicted = model(turned(sample), torch.from_numpy(t), torch.from_numpy(text.astype(np.float32))).sample
  return dict(sample=sample, t=t, text=text, predicted=back(predicted))


def of_vae(model, rng):
  """Inputs and outputs of an autoencoder; `gradient` is that of <cotangent, mean> in the image."""
  pixels = rng.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float16)
  latents, cotangent = rng.normal(size=(2, 2, 4, 6, 4)).astype(np.float16)
  image = turned(pixels).requires_grad_()
  posterior = model.encode(image).latent_dist
  (posterior.mean * turned(cotangent)).sum().backward()
  decoded = model.decode(turned(latents)).sample
  return dict(image=pixels, latents=latents, cotangent=cotangent, mean=back(posterior.mean),
              logvar=back(posterior.logvar), gradient=back(image.grad), decoded=back(decoded))


def of_text(model, rng):
  """Inputs and outputs of a text encoder; the mask matters to T5 alone."""
  import torch
  ids = rng.integers(2, 18, (2, 8))
  mask = np.arange(8) < np.array([[8], [4]])
  if "clip" in model.config.model_type:
    ids[:, 0], ids[0, -1:], ids[1, 4:] = 18, 19, 19
    states = model(torch.from_numpy(ids)).last_hidden_state
  else:
    states = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64))).last_hidden_state
  return dict(ids=ids, mask=mask, states=states.detach().numpy())


def of_vision(model, rng):
  """Inputs and outputs of an image encoder: what it gives of the whole, and every token in the same place."""
  pixels = rng.normal(size=(2, 12, 12, 3)).astype(np.float16)
  given = model(turned(pixels))
  tokens = model.visual_projection(model.vision_model.post_layernorm(given.last_hidden_state))
  return dict(image=pixels, whole=given.image_embeds.detach().numpy(), tokens=tokens.detach().numpy())


def write(folder):
  """All cases, each into a folder of its name in `folder`."""
  for name, (kind, config) in CASES.items():
    model, rng = build(kind, config), np.random.default_rng(0)
    reference = {"UNet2DConditionModel": of_unet, "AutoencoderKL": of_vae,
                 "CLIPVisionModelWithProjection": of_vision}.get(kind, of_text)(model, rng)
    model.half().save_pretrained(folder / name)
    save_file({key: np.ascontiguousarray(value) for key, value in reference.items()},
              folder / name / "reference.safetensors")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Write the golden files of the networks.")
  parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: beside this file)")
  write(parser.parse_args().out)
