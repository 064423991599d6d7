"""What the tests of priors share: networks of a few thousand parameters, and folders made of them."""
import functools
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

WITHOUT_PARAMETERS = dict(
  sample_size=None, scaling_factor=1.0, upcast_attention=False, hidden_act="gelu", dtype=jnp.float32)
"""Fields of networks that change no parameter, with one value for all."""


@pytest.fixture(scope="session", autouse=True)
def traced_once():
  """Networks with the same parameters are traced once in a session, which takes up to seconds for each."""
  from sds_jax.priors.networks import abstract
  trace = abstract._traced_params.__wrapped__
  once = functools.cache(trace)

  @functools.wraps(trace)
  def traced(model):
    return once(model.clone(**{name: value for name, value in WITHOUT_PARAMETERS.items() if hasattr(model, name)}))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(abstract, "_traced_params", traced)
    yield


UNET = dict(
  _class_name="UNet2DConditionModel", sample_size=4, in_channels=12, out_channels=12,
  down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
  block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4, cross_attention_dim=12, attention_head_dim=2,
  class_embed_type="projection", projection_class_embeddings_input_dim=5)
WORDS = ("a", "red", "blue", "cube", "cone")
LENGTH = 8


def tiny_vocabulary():
  """A CLIP vocabulary with one token for each of WORDS: single characters, merges left to right, special tokens."""
  letters = [chr(i) for i in range(33, 127)]
  pieces, merges = letters + [letter + "</w>" for letter in letters], []
  for word in WORDS:
    left = word[0]
    for i, letter in enumerate(word[1:], start=1):
      right = letter + ("</w>" if i == len(word) - 1 else "")
      if f"{left} {right}" not in merges:
        merges.append(f"{left} {right}")
        pieces.append(left + right)
      left += letter
  tokens = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
  return {token: i for i, token in enumerate(tokens)}, merges


CLIP = dict(model_type="clip_text_model", vocab_size=len(tiny_vocabulary()[0]), hidden_size=12, intermediate_size=24,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=LENGTH, hidden_act="quick_gelu",
            eos_token_id=1, bos_token_id=0, pad_token_id=1)


def quick_jit(function, *args):
  """function(*args) under jit without LLVM's optimizations: these networks take longer to compile than to run."""
  return jax.jit(function).lower(*args).compile({"xla_backend_optimization_level": 0})(*args)


def random_params(model, seed=0):
  """Parameters that all matter: no zero biases, no unit scales."""
  from sds_jax.priors.loading.checkpoint import abstract_params
  rng = np.random.default_rng(seed)
  values = {path: (path[-1] == "scale") + rng.normal(size=leaf.shape) / np.sqrt(max(leaf.size, 1) ** 0.5)
            for path, leaf in abstract_params(model).items()}
  # `jnp.asarray` would compile a program for each shape.
  return jax.device_put(flax.traverse_util.unflatten_dict({
    path: value.astype(np.float32) for path, value in values.items()}))


def write_tokenizer(folder, **config):
  vocabulary, merges = tiny_vocabulary()
  folder.mkdir(parents=True)
  (folder / "vocab.json").write_text(json.dumps(vocabulary))
  (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
  (folder / "tokenizer_config.json").write_text(json.dumps(
    dict(tokenizer_class="CLIPTokenizer", model_max_length=LENGTH, **config)))
  return folder


@pytest.fixture(scope="session")
def unet():
  """(config, module, params)"""
  from sds_jax.priors.networks.unet import UNet2DConditionModel
  model = UNet2DConditionModel.from_config(UNET)
  return UNET, model, random_params(model)


@pytest.fixture(scope="session")
def clip():
  """(config, module, params)"""
  from sds_jax.priors.networks.clip import CLIPTextModel
  model = CLIPTextModel.from_config(CLIP)
  return CLIP, model, random_params(model)


@pytest.fixture(scope="session")
def prior_folder(unet, clip, tmp_path_factory):
  """A whole prior: 8x8 images, blocks of 2x2, v-prediction, conditioned on the camera."""
  from sds_jax.priors.loading.checkpoint import write_component
  folder = tmp_path_factory.mktemp("prior")
  write_component(folder / "unet", "unet", unet[0], unet[2], dtype=jnp.float32)
  write_component(folder / "text_encoder", "clip_text", clip[0], clip[2], dtype=jnp.float32)
  write_tokenizer(folder / "tokenizer")
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(
    dict(_class_name="DDIMScheduler", num_train_timesteps=50, beta_schedule="squaredcos_cap_v2",
         prediction_type="v_prediction")))
  (folder / "model_index.json").write_text(json.dumps(
    dict(pixel_unshuffle=2, image_size=8, camera_dim=5, vocabulary=list(WORDS))))
  return folder


SD_UNET = dict(
  _class_name="UNet2DConditionModel", sample_size=8, in_channels=4, out_channels=4,
  down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"], block_out_channels=[32],
  layers_per_block=1, norm_num_groups=8, cross_attention_dim=12, attention_head_dim=2)
SD_VAE = dict(
  _class_name="AutoencoderKL", in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[8, 16],
  down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1,
  norm_num_groups=4, sample_size=16, scaling_factor=0.18215)
SD_INDEX = dict(
  _class_name="StableDiffusionPipeline", _diffusers_version="0.35.0", scheduler=["diffusers", "DDIMScheduler"],
  text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
  unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"], safety_checker=[None, None],
  feature_extractor=[None, None], requires_safety_checker=False)
SD_SCHEDULER = dict(
  _class_name="DDIMScheduler", num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, clip_sample=False,
  beta_schedule="scaled_linear", prediction_type="epsilon", set_alpha_to_one=True, timestep_spacing="trailing")


@pytest.fixture(scope="session")
def sd_folder(clip, tmp_path_factory):
  """A whole latent prior, as Stable Diffusion's but tiny: 16x16 images, 8x8x4 latents."""
  from sds_jax.priors.loading.checkpoint import COMPONENTS, write_component
  folder = tmp_path_factory.mktemp("sd")
  for name, config in (("unet", SD_UNET), ("vae", SD_VAE)):
    params = random_params(COMPONENTS[name].network.from_config(config), seed=len(name))
    write_component(folder / name, name, config, params, dtype=jnp.float32)
  write_component(folder / "text_encoder", "clip_text", clip[0], clip[2], dtype=jnp.float32)
  write_tokenizer(folder / "tokenizer")
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD_SCHEDULER))
  (folder / "model_index.json").write_text(json.dumps(SD_INDEX))
  return folder


SDXL_UNET = dict(
  _class_name="UNet2DConditionModel", sample_size=8, in_channels=4, out_channels=4, block_out_channels=[8],
  down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"], layers_per_block=1,
  norm_num_groups=4, cross_attention_dim=20, attention_head_dim=[2], use_linear_projection=True,
  transformer_layers_per_block=[1], addition_embed_type="text_time", addition_time_embed_dim=4,
  projection_class_embeddings_input_dim=6 + 6 * 4)
SDXL_CLIP_2 = dict(CLIP, hidden_size=8, projection_dim=6, hidden_act="gelu", eos_token_id=2)
SDXL_INDEX = dict(
  _class_name="StableDiffusionXLPipeline", _diffusers_version="0.19.0.dev0", force_zeros_for_empty_prompt=True,
  add_watermarker=None, scheduler=["diffusers", "DDIMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
  text_encoder_2=["transformers", "CLIPTextModelWithProjection"], tokenizer=["transformers", "CLIPTokenizer"],
  tokenizer_2=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
  vae=["diffusers", "AutoencoderKL"])


@pytest.fixture(scope="session")
def sdxl_folder(clip, tmp_path_factory):
  """A whole Stable Diffusion XL but for its sizes: 16x16 images, 8x8x4 latents, texts of 12 + 8 features."""
  from sds_jax.priors.loading.checkpoint import COMPONENTS, write_component
  folder = tmp_path_factory.mktemp("sdxl")
  for name, kind, config in (("unet", "unet", SDXL_UNET), ("vae", "vae", dict(SD_VAE, scaling_factor=0.13025)),
                             ("text_encoder", "clip_text", dict(CLIP, architectures=["CLIPTextModel"])),
                             ("text_encoder_2", "clip_text_2", SDXL_CLIP_2)):
    params = random_params(COMPONENTS[kind].network.from_config(config), seed=len(name))
    write_component(folder / name, kind, config, params, dtype=jnp.float32)
  write_tokenizer(folder / "tokenizer")
  write_tokenizer(folder / "tokenizer_2", pad_token="!")
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD_SCHEDULER))
  (folder / "model_index.json").write_text(json.dumps(SDXL_INDEX))
  return folder


VISION = dict(
  architectures=["CLIPVisionModelWithProjection"], model_type="clip_vision_model", hidden_size=8, intermediate_size=16,
  projection_dim=768, num_hidden_layers=1, num_attention_heads=2, image_size=12, patch_size=4, hidden_act="quick_gelu")
PROJECTIONS = {  # as the two published layouts have them: class of the pipeline, component, layer, config.json
  "Zero123Pipeline": ("clip_camera_projection", "proj", dict(
    _class_name="CLIPCameraProjection", _diffusers_version="0.18.2", additional_embeddings=4, embedding_dim=768)),
  "Zero1to3StableDiffusionPipeline": ("cc_projection", "projection", dict(
    _class_name="CCProjection", _diffusers_version="0.18.2"))}


def zero123_index(kind):
  """The model_index.json of a published folder of that class."""
  return dict(
    _class_name=kind, _diffusers_version="0.18.2", feature_extractor=["transformers", "CLIPImageProcessor"],
    image_encoder=["transformers", "CLIPVisionModelWithProjection"], requires_safety_checker=False,
    safety_checker=[None, None], scheduler=["diffusers", "DDIMScheduler"], unet=["diffusers", "UNet2DConditionModel"],
    vae=["diffusers", "AutoencoderKL"], **{PROJECTIONS[kind][0]: ["zero123", PROJECTIONS[kind][2]["_class_name"]]})


@pytest.fixture(scope="session")
def zero123_folders(tmp_path_factory):
  """{class of the pipeline: folder}: Zero-1-to-3 but for its sizes, 16x16 images, 8x8x4 latents; the same weights."""
  from sds_jax.priors.loading.checkpoint import COMPONENTS, write_component
  parts = dict(unet=SD_UNET | dict(in_channels=8, cross_attention_dim=768), vae=SD_VAE, image_encoder=VISION)
  folders = {kind: tmp_path_factory.mktemp("zero123") for kind in PROJECTIONS}
  rng = np.random.default_rng(0)
  layer = dict(weight=rng.normal(size=(768, 772)) / 30, bias=rng.normal(size=768) / 30)
  for name, config in parts.items():
    params = random_params(COMPONENTS[name].network.from_config(config), seed=len(name))
    for folder in folders.values():
      write_component(folder / name, name, config, params, dtype=jnp.float32)
  for kind, folder in folders.items():
    component, stem, config = PROJECTIONS[kind]
    for name, value in ((f"{component}/config", config), ("scheduler/scheduler_config", SD_SCHEDULER),
                        ("model_index", zero123_index(kind))):
      (folder / name).parent.mkdir(exist_ok=True)
      (folder / f"{name}.json").write_text(json.dumps(value))
    save_file({f"{stem}.{key}": value.astype(np.float32) for key, value in layer.items()},
              folder / component / "diffusion_pytorch_model.safetensors")
  return folders


@pytest.fixture(name="quick_jit", scope="session")
def quick_jit_fixture():
  return quick_jit


@pytest.fixture(name="random_params", scope="session")
def random_params_fixture():
  return random_params


@pytest.fixture(name="write_tokenizer", scope="session")
def write_tokenizer_fixture():
  return write_tokenizer


LDM_VAE = SD_VAE | dict(block_out_channels=[32, 64], norm_num_groups=32, sample_size=128)
LDM_UNETS = dict(
  SD1=dict(sample_size=64, in_channels=4, out_channels=4, block_out_channels=[32, 64], layers_per_block=1,
           down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], cross_attention_dim=64,
           up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], attention_head_dim=8),
  SD2=dict(sample_size=96, in_channels=4, out_channels=4, block_out_channels=[64, 128], layers_per_block=1,
           down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], cross_attention_dim=64,
           up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], attention_head_dim=[1, 2], use_linear_projection=True))
LDM_UNETS["SDXL"] = LDM_UNETS["SD2"] | dict(
  sample_size=128, down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], cross_attention_dim=128,
  up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], transformer_layers_per_block=[1, 2],
  addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=64 + 6 * 256)
LDM_UNETS["Zero123"] = LDM_UNETS["SD1"] | dict(in_channels=8, sample_size=32)
LDM_TEXT = CLIP | dict(vocab_size=49408, hidden_size=64, intermediate_size=128, num_attention_heads=1,
                       max_position_embeddings=77, eos_token_id=2, bos_token_id=0, pad_token_id=1)


def ldm_tensors(kind, folder):
  """The tensors of a folder under the names of a single file, with the extras that published files have."""
  from sds_jax.priors.loading import ldm_names
  attending = frozenset(i for i, block in enumerate(LDM_UNETS[kind]["up_block_types"]) if "CrossAttn" in block)
  rules = {"unet": (ldm_names.unet_rule(LDM_UNETS[kind]["layers_per_block"], attending), "model.diffusion_model."),
           "vae": (ldm_names.vae_rule(2), "first_stage_model."),
           "cc_projection": (lambda name: ldm_names.LdmName(name.removeprefix("projection.")), "cc_projection."),
           "image_encoder": (ldm_names.clip_rule, "cond_stage_model.model.visual."),
           "text_encoder": {"SD1": (ldm_names.same_rule, "cond_stage_model.transformer."),
                            "SDXL": (ldm_names.same_rule, "conditioner.embedders.0.transformer.")}.get(
                              kind, (ldm_names.clip_rule, "cond_stage_model.model.")),
           "text_encoder_2": (ldm_names.clip_rule, "conditioner.embedders.1.model.")}
  tensors, stacked = {"betas": np.zeros(1000, np.float32), "model_ema.decay": np.zeros((), np.float32)}, {}
  for part, (rule, prefix) in rules.items():
    for file in (folder / part).glob("*.safetensors"):
      for name, array in load_file(file).items():
        place = rule(name)
        projection = "proj_in" in place.key or "proj_out" in place.key
        convolution = (part == "vae" and "attn_1" in place.key or
                       part == "unet" and kind in ("SD1", "Zero123") and projection)
        array = array[:, :, None, None] if convolution and array.ndim == 2 else array
        if place.third is None:
          tensors[prefix + place.key] = np.ascontiguousarray(array.T if place.transposed else array)
        else:
          stacked.setdefault(prefix + place.key, {})[place.third] = array
        if part == "unet":
          tensors[ldm_names.average_key(place.key)] = tensors[prefix + place.key] + 1
  tensors |= {key: np.concatenate([parts[i] for i in range(3)]) for key, parts in stacked.items()}
  if kind == "SD1":
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(77)[None]
  if kind == "SDXL":
    tensors["conditioner.embedders.1.model.logit_scale"] = np.zeros((), np.float32)
  if kind == "SD2":  # OpenCLIP's own file: one layer more, which is not used
    last = {key: array for key, array in tensors.items() if "resblocks.1." in key}
    tensors |= {key.replace("resblocks.1.", "resblocks.2."): array for key, array in last.items()}
    tensors |= {"cond_stage_model.model.logit_scale": np.zeros((), np.float32),
                       "cond_stage_model.model.text_projection": np.zeros((64, 64), np.float32)}
  return tensors


@pytest.fixture(scope="session")
def ldm_models(tmp_path_factory):
  """{kind: (folder in diffusers' format, the same tensors under the names of a single file)}, small."""
  from sds_jax.priors.loading import names
  from sds_jax.priors.loading.checkpoint import COMPONENTS, abstract_params
  rng = np.random.default_rng(0)

  def tensors(part, config):
    kind, shapes = COMPONENTS[part], abstract_params(COMPONENTS[part].network.from_config(config))
    return {name: rng.normal(size=names.checkpoint_shape(path, shapes[path].shape)).astype(np.float16)
            for name, path in names.flax_paths(shapes, kind.table).items()}

  vision = VISION | dict(hidden_size=64, intermediate_size=128, num_attention_heads=1, projection_dim=64)
  projection = dict(_class_name="CCProjection", in_channel=68, out_channel=64)
  unets = {kind: tensors("unet", LDM_UNETS[kind]) for kind in ("SD1", "SD2", "SDXL")}
  unets["Zero123"] = unets["SD1"] | {"conv_in.weight": np.tile(unets["SD1"]["conv_in.weight"], (1, 2, 1, 1))}
  vae, text = tensors("vae", LDM_VAE), tensors("clip_text", LDM_TEXT)
  second = LDM_TEXT | dict(hidden_act="gelu", projection_dim=64)
  pooled = text | {"text_projection.weight": rng.normal(size=(64, 64)).astype(np.float16)}
  zero123 = {"image_encoder": (vision, tensors("image_encoder", vision)),
             "cc_projection": (projection, tensors("cc_projection", projection))}
  models = {}
  for kind, config in LDM_UNETS.items():
    folder = tmp_path_factory.mktemp(kind)
    act = dict(hidden_act="gelu" if kind == "SD2" else "quick_gelu")
    parts = {"unet": (config, unets[kind]), "vae": (LDM_VAE, vae)}
    parts |= zero123 if kind == "Zero123" else {"text_encoder": (LDM_TEXT | act, text)}
    parts |= {"text_encoder_2": (second, pooled)} if kind == "SDXL" else {}
    for name, (config, values) in parts.items():
      (folder / name).mkdir()
      (folder / name / "config.json").write_text(json.dumps(config))
      stem = "model" if "encoder" in name else "diffusion_pytorch_model"
      save_file(values, folder / name / f"{stem}.safetensors", metadata={"format": "pt"})
    models[kind] = folder, ldm_tensors(kind, folder)
  return models


@pytest.fixture(name="stored_arrays", scope="session")
def stored_arrays_fixture():
  """(component's folder, its kind) -> (network, {name in diffusers: array as stored}); one trace."""
  from sds_jax.priors.loading import names
  from sds_jax.priors.loading.checkpoint import COMPONENTS, open_component

  def read(folder, kind):
    network, places = open_component(folder, kind)
    return network, {names.checkpoint_name(path, COMPONENTS[kind].table): stored.read().reshape(stored.shape)
                     for path, stored in places.items()}

  return read
