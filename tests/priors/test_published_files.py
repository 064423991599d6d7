"""Names and shapes of published single files at full size: their lengths to the byte, their configurations."""
import json
import math

import pytest

from sds_jax.priors.families import stable_diffusion, zero123
from sds_jax.priors.loading import inferred_configs, ldm_names
from sds_jax.priors.loading.checkpoint import COMPONENTS


def linear(name, out, inputs, bias=True):
  return {f"{name}.weight": (out, inputs)} | ({f"{name}.bias": (out,)} if bias else {})


def conv(name, out, inputs, size=3):
  return {f"{name}.weight": (out, inputs, size, size), f"{name}.bias": (out,)}


def norm(name, width):
  return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def resnet(name, inputs, out, time=0):
  shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", out, inputs) | norm(f"{name}.norm2", out)
  shapes |= conv(f"{name}.conv2", out, out) | (linear(f"{name}.time_emb_proj", out, time) if time else {})
  return shapes | (conv(f"{name}.conv_shortcut", out, inputs, 1) if inputs != out else {})


def transformer(name, width, text, depth, linear_projection):
  shapes = norm(f"{name}.norm", width)
  for end in ("proj_in", "proj_out"):
    shapes |= linear(f"{name}.{end}", width, width) if linear_projection else conv(f"{name}.{end}", width, width, 1)
  for block in (f"{name}.transformer_blocks.{i}" for i in range(depth)):
    shapes |= {key: shape for i in (1, 2, 3) for key, shape in norm(f"{block}.norm{i}", width).items()}
    for attention, context in ((f"{block}.attn1", width), (f"{block}.attn2", text)):
      shapes |= linear(f"{attention}.to_q", width, width, False) | linear(f"{attention}.to_out.0", width, width)
      shapes |= linear(f"{attention}.to_k", width, context, False) | linear(f"{attention}.to_v", width, context, False)
    shapes |= linear(f"{block}.ff.net.0.proj", 8 * width, width) | linear(f"{block}.ff.net.2", width, 4 * width)
  return shapes


def unet(widths, depths, text, linear_projection, added=0, inputs=4):
  """{name in diffusers: shape} of a U-Net of two layers a block; a depth of 0 is a block without attention."""
  time, width, skips = 4 * widths[0], widths[0], [widths[0]]
  shapes = conv("conv_in", width, inputs) | linear("time_embedding.linear_1", time, width)
  shapes |= linear("time_embedding.linear_2", time, time)
  if added:
    shapes |= linear("add_embedding.linear_1", time, added) | linear("add_embedding.linear_2", time, time)
  for i, out in enumerate(widths):
    for j in range(2):
      shapes |= resnet(f"down_blocks.{i}.resnets.{j}", width, out, time)
      shapes |= transformer(f"down_blocks.{i}.attentions.{j}", out, text, depths[i], linear_projection) if depths[
        i] else {}
      width = out
      skips.append(width)
    if i < len(widths) - 1:
      shapes |= conv(f"down_blocks.{i}.downsamplers.0.conv", out, out)
      skips.append(width)
  shapes |= resnet("mid_block.resnets.0", width, width, time) | resnet("mid_block.resnets.1", width, width, time)
  shapes |= transformer("mid_block.attentions.0", width, text, depths[-1] or 1, linear_projection)
  for i, out in enumerate(widths[::-1]):
    for j in range(3):
      shapes |= resnet(f"up_blocks.{i}.resnets.{j}", width + skips.pop(), out, time)
      depth = depths[::-1][i]
      shapes |= transformer(f"up_blocks.{i}.attentions.{j}", out, text, depth, linear_projection) if depth else {}
      width = out
    if i < len(widths) - 1:
      shapes |= conv(f"up_blocks.{i}.upsamplers.0.conv", out, out)
  return shapes | norm("conv_norm_out", width) | conv("conv_out", 4, width)


def vae(widths=(128, 256, 512, 512)):
  """{name in diffusers: shape} of Stable Diffusion's autoencoder; its attention as convolutions."""
  shapes, width = conv("encoder.conv_in", widths[0], 3), widths[0]
  for i, out in enumerate(widths):
    for j in range(2):
      shapes |= resnet(f"encoder.down_blocks.{i}.resnets.{j}", width, out)
      width = out
    shapes |= conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", out, out) if i < 3 else {}
  for side in ("encoder", "decoder"):
    attention = f"{side}.mid_block.attentions.0"
    shapes |= norm(f"{attention}.group_norm", width)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
      shapes |= conv(f"{attention}.{part}", width, width, 1)
    for j in range(2):
      shapes |= resnet(f"{side}.mid_block.resnets.{j}", width, width)
  shapes |= norm("encoder.conv_norm_out", width) | conv("encoder.conv_out", 8, width)
  shapes |= conv("decoder.conv_in", width, 4)
  for i, out in enumerate(widths[::-1]):
    for j in range(3):
      shapes |= resnet(f"decoder.up_blocks.{i}.resnets.{j}", width, out)
      width = out
    shapes |= conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", out, out) if i < 3 else {}
  shapes |= norm("decoder.conv_norm_out", width) | conv("decoder.conv_out", 3, width)
  return shapes | conv("quant_conv", 8, 8, 1) | conv("post_quant_conv", 4, 4, 1)


def clip(width, layers, projection=0):
  """{name in transformers: shape} of a CLIP text encoder."""
  shapes = {"text_model.embeddings.token_embedding.weight": (49408, width),
            "text_model.embeddings.position_embedding.weight": (77, width)}
  for layer in (f"text_model.encoder.layers.{i}" for i in range(layers)):
    shapes |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
    shapes |= linear(f"{layer}.mlp.fc1", 4 * width, width) | linear(f"{layer}.mlp.fc2", width, 4 * width)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
      shapes |= linear(f"{layer}.self_attn.{part}", width, width)
  return shapes | norm("text_model.final_layer_norm", width) | (
    {"text_projection.weight": (projection, width)} if projection else {})


def in_file(shapes, rule, prefix=""):
  """{name in a single file: shape}"""
  result = {}
  for name, shape in shapes.items():
    place = rule(name)
    shape = shape[::-1] if place.transposed else shape
    result[prefix + place.key] = shape if place.third is None else (3 * shape[0], *shape[1:])
  return result


BUFFERS = ("alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod",
           "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance",
           "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
           "sqrt_recipm1_alphas_cumprod")
COUNTS = {"model_ema.decay": ("F32", ()), "model_ema.num_updates": ("I32", ())}
RULE = ldm_names.unet_rule(2, frozenset({1, 2, 3}))
SD1 = unet((320, 640, 1280, 1280), (1, 1, 1, 0), 768, False)
SD2 = unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, True)
UNET, VAE = "model.diffusion_model.", "first_stage_model."


WIDTHS = {"F16": 2, "F32": 4, "I32": 4, "I64": 8}


def size_of(shapes, more, dtype="F32"):
  """Returns the length of a file of one dtype, ordered by name: the header and the data."""
  tensors = {name: (dtype, shape) for name, shape in shapes.items()} | more
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for name, (dtype, shape) in sorted(tensors.items()):
    begin, end = end, end + math.prod(shape) * WIDTHS[dtype]
    header[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[begin, end])
  return 8 + len(json.dumps(header, separators=(",", ":"))) + end


def test_stable_diffusion_1_5():
  """v1-5-pruned-emaonly.safetensors; v1-5-pruned.safetensors has the tensors in another order."""
  network = in_file(SD1, RULE, UNET)
  shapes = (network | in_file(vae(), ldm_names.vae_rule(4), VAE) | dict.fromkeys(BUFFERS, (1000,))
            | in_file(clip(768, 12), ldm_names.same_rule, "cond_stage_model.transformer."))
  more = COUNTS | {"cond_stage_model.transformer.text_model.embeddings.position_ids": ("I64", (1, 77))}
  assert len(shapes) + len(more) == 1145 and size_of(shapes, more) == 4_265_146_304
  averages = {ldm_names.average_key(name.removeprefix(UNET)): shape for name, shape in network.items()}
  assert abs(size_of(shapes | averages, more) - 7_703_324_286) <= 5


@pytest.mark.parametrize("more, size", [(COUNTS, 5_214_604_494), ({}, 5_214_604_312)])
def test_stable_diffusion_2_1(more, size):
  """v2-1_768-ema-pruned.safetensors (of 512 pixels: the same size), and nonema."""
  shapes = (in_file(SD2, RULE, UNET) | in_file(vae(), ldm_names.vae_rule(4), VAE) | dict.fromkeys(BUFFERS, (1000,))
            | in_file(clip(1024, 24, 1024), ldm_names.clip_rule, "cond_stage_model.model.")
            | {"cond_stage_model.model.logit_scale": ()})
  assert size_of(shapes, more) == size


def test_stable_diffusion_xl():
  """sd_xl_base_1.0.safetensors; what our length lacks is its metadata, which hold a thumbnail of some 35 kB."""
  clip_l, clip_g = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
  shapes = (in_file(unet((320, 640, 1280), (0, 2, 10), 2048, True, added=2816),
                    ldm_names.unet_rule(2, frozenset({1, 2})), UNET)
            | in_file(vae(), ldm_names.vae_rule(4), VAE) | in_file(clip(768, 12), ldm_names.same_rule, clip_l)
            | in_file(clip(1280, 32, 1280), ldm_names.clip_rule, clip_g) | {clip_g + "logit_scale": ()})
  more = {clip_l + "text_model.embeddings.position_ids": ("I64", (1, 77))}
  assert len(shapes) + len(more) == 2515
  assert 30_000 < 6_938_078_334 - size_of(shapes, more, "F16") < 40_000


VISION = {"conv1.weight": (1024, 3, 14, 14), "positional_embedding": (257, 1024), "proj": (1024, 768)} | {
  f"transformer.resblocks.{i}.mlp.c_fc.weight": (4096, 1024) for i in range(24)}
CASES = {
  "SD 1": ("unet", stable_diffusion.SD1_UNET, inferred_configs.unet_config(in_file(SD1, RULE))),
  "SD 2": ("unet", stable_diffusion.SD2_UNET, inferred_configs.unet_config(in_file(SD2, RULE))),
  "Zero123": ("unet", zero123.ZERO123_UNET, inferred_configs.unet_config(in_file(
    unet((320, 640, 1280, 1280), (1, 1, 1, 0), 768, False, inputs=8), RULE))),
  "VAE": ("vae", stable_diffusion.SD_VAE, inferred_configs.vae_config(in_file(vae(), ldm_names.vae_rule(4)))),
  "CLIP-L": ("clip_text", stable_diffusion.CLIP_L, inferred_configs.clip_text_config(clip(768, 12))),
  "OpenCLIP-H": ("clip_text", stable_diffusion.OPEN_CLIP_H, inferred_configs.open_clip_text_config(
    in_file(clip(1024, 23), ldm_names.clip_rule))),
  "image encoder": ("image_encoder", zero123.CLIP_L_VISION, inferred_configs.clip_vision_config(VISION)),
}


@pytest.mark.parametrize("name", CASES)
def test_configurations(name):
  """What follows from the shapes is the published network, field by field."""
  part, published, inferred = CASES[name]
  network, sizes = COMPONENTS[part].network, {key: published[key] for key in ("sample_size",) if key in published}
  assert network.from_config(inferred | sizes) == network.from_config(published)
