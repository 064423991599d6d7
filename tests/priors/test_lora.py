"""LoRA files: their names, what they add to weights, which of them are refused, and priors with them."""
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from sds_jax import schema, settings
from sds_jax.priors import convert
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading import names
from sds_jax.priors.loading.additions import read_additions
from sds_jax.priors.loading.checkpoint import configs_only, open_component
from sds_jax.priors.loading.file_lists import parse_loras
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.lora import merge, read_lora
from sds_jax.priors.loading.lora_names import ldm_names, module_index, parse_key
from sds_jax.priors.loading.text import open_clip_text

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
KERNELS = {
  f"{BLOCK}.attn1.to_q.weight": (6, 6), f"{BLOCK}.attn2.to_k.weight": (6, 12),
  f"{BLOCK}.attn1.to_out.0.weight": (6, 6), f"{BLOCK}.ff.net.0.proj.weight": (8, 6),
  "down_blocks.0.attentions.0.proj_in.weight": (6, 6, 1, 1), "down_blocks.0.resnets.0.conv1.weight": (6, 4, 3, 3),
  "down_blocks.0.downsamplers.0.conv.weight": (6, 6, 3, 3)}
TEXT_KERNELS = {"text_model.encoder.layers.0.self_attn.q_proj.weight": (12, 12),
                "text_model.encoder.layers.0.mlp.fc1.weight": (24, 12)}
RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def layer(shape, rank=3):
  """(down, up) of a weight"""
  return normal(rank, *shape[1:]), normal(shape[0], rank, *[1] * (len(shape) - 2))


def product(down, up):
  return (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(len(up), *down.shape[1:])


def changed(loras, kernels=KERNELS, network="unet"):
  """{name: change of a zero weight}"""
  return {name: change(np.zeros(kernels[name], np.float32)) for name, change in merge(loras, network, kernels).items()}


def processor(module, part):
  """The name in old versions of diffusers."""
  return f"{module.replace('.to_', '.processor.to_').replace('to_out.0', 'to_out')}_lora.{part}.weight"


STYLES = {
  "kohya": lambda module, part: f"lora_unet_{module.replace('.', '_')}.lora_{part}.weight",
  "processors": lambda module, part: f"unet.{processor(module, part)}",
  "no prefix": processor,
  "diffusers": lambda module, part: f"unet.{module}.lora.{part}.weight",
  "peft": lambda module, part: f"unet.{module}.lora_{dict(down='A', up='B')[part]}.weight",
  "adapter": lambda module, part: f"base_model.model.{module}.lora_{dict(down='A', up='B')[part]}.default.weight",
}


@pytest.mark.parametrize("style", STYLES)
def test_names_of_each_writer(style, tmp_path):
  tensors, expected = {}, {}
  for name, shape in KERNELS.items():
    if style in ("processors", "no prefix") and ".to_" not in name:
      continue
    down, up = layer(shape)
    module = name.removesuffix(".weight")
    tensors |= {STYLES[style](module, "down"): down, STYLES[style](module, "up"): up}
    expected[name] = product(down, up)
  save_file(tensors, tmp_path / "a.safetensors")
  got = changed([read_lora(tmp_path / "a.safetensors", 0.5)])
  assert set(got) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], 0.5 * value, rtol=1e-5, atol=1e-5)


def test_names_of_latent_diffusion():
  """The names of kohya's SDXL LoRAs; SDXL has two residual blocks in each block, three on the way up."""
  modules = {
    "time_embedding.linear_1": "time_embed.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "down_blocks.0.resnets.1.conv2": "input_blocks.2.0.out_layers.3",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.1.resnets.1.time_emb_proj": "input_blocks.5.0.emb_layers.1",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": "input_blocks.4.1.transformer_blocks.1.attn1.to_q",
    "down_blocks.1.attentions.1.proj_in": "input_blocks.5.1.proj_in",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "down_blocks.2.resnets.1.conv1": "input_blocks.8.0.in_layers.2",
    "down_blocks.2.attentions.1.proj_out": "input_blocks.8.1.proj_out",
    "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj": "middle_block.1.transformer_blocks.9.ff.net.0.proj",
    "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    "up_blocks.0.resnets.2.conv1": "output_blocks.2.0.in_layers.2",
    "up_blocks.0.attentions.2.proj_in": "output_blocks.2.1.proj_in",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.resnets.2.conv1": "output_blocks.5.0.in_layers.2",
    "up_blocks.1.attentions.2.proj_in": "output_blocks.5.1.proj_in",
    "up_blocks.2.resnets.2.conv1": "output_blocks.8.0.in_layers.2"}
  assert ldm_names(modules) == modules
  plain = {"up_blocks.0.resnets.0.conv1": "output_blocks.0.0.in_layers.2",
           "up_blocks.0.upsamplers.0.conv": "output_blocks.0.1.conv"}
  assert ldm_names(plain) == plain  # a block without attention
  index = module_index(modules, "unet")
  parsed = parse_key("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight")
  assert index[parsed.module] == "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"


@pytest.mark.parametrize("key, network, name", [
  ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "text_encoder", "self_attn.q_proj"),
  ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "text_encoder", "mlp.fc1"),
  ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "text_encoder_2", "mlp.fc1"),
  ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight", "text_encoder",
   "self_attn.q_proj"),
  ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight", "text_encoder", "self_attn.q_proj"),
  ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "text_encoder_2", "self_attn.q_proj"),
  ("text_encoder.encoder.layers.0.mlp.fc1.lora_B.weight", "text_encoder", "mlp.fc1"),
  ("base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_B.weight", "text_encoder", "mlp.fc1")])
def test_names_of_text_encoders(key, network, name):
  parsed = parse_key(key)
  index = module_index((name.removesuffix(".weight") for name in TEXT_KERNELS), network)
  assert parsed.network == network and index[parsed.module] == f"text_model.encoder.layers.0.{name}"


def kohya(tmp_path, tensors, name="a", metadata=None):
  path = tmp_path / f"{name}.safetensors"
  save_file({key: np.asarray(value) for key, value in tensors.items()}, path, metadata=metadata)
  return path


CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
LINEAR = "lora_unet_" + f"{BLOCK}.attn1.to_q".replace(".", "_")


@pytest.mark.parametrize("alpha", [np.float32(2), np.array([2], np.float16), np.array([[2]], np.int64),
                                   jnp.bfloat16(2)])
def test_alpha_and_dtypes(alpha, tmp_path):
  down, up = layer((6, 6), rank=4)
  dtype = jnp.bfloat16 if isinstance(alpha, jnp.bfloat16.dtype.type) else np.float16
  tensors = {f"{LINEAR}.lora_down.weight": down.astype(dtype), f"{LINEAR}.lora_up.weight": up.astype(dtype),
             f"{LINEAR}.alpha": alpha}
  got = changed([read_lora(kohya(tmp_path, tensors), -3.)])[f"{BLOCK}.attn1.to_q.weight"]
  expected = product(*(array.astype(dtype).astype(np.float32) for array in (down, up)))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, -3 * 2 / 4 * expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("down, up", [((3, 6), (6, 3)), ((3, 6, 1, 1), (6, 3, 1, 1)), ((3, 6, 1, 1), (6, 3))])
@pytest.mark.parametrize("module", ["down_blocks_0_attentions_0_proj_in", f"{BLOCK}.attn1.to_q".replace(".", "_")])
def test_linear_layers_stored_as_convolutions(module, down, up, tmp_path):
  down, up = normal(*down), normal(*up)
  path = kohya(tmp_path, {f"lora_unet_{module}.lora_down.weight": down, f"lora_unet_{module}.lora_up.weight": up})
  (got,) = changed([read_lora(path, 1.)]).values()
  np.testing.assert_allclose(got.reshape(6, 6), up.reshape(6, 3) @ down.reshape(3, 6), rtol=1e-5, atol=1e-6)


def test_three_convolutions(tmp_path):
  """LoCon with a core: 1x1 to the rank, 3x3 within the rank, 1x1 to the outputs."""
  down, mid, up = normal(3, 4, 1, 1), normal(3, 3, 3, 3), normal(6, 3, 1, 1)
  path = kohya(tmp_path, {f"{CONV}.lora_down.weight": down, f"{CONV}.lora_mid.weight": mid,
                          f"{CONV}.lora_up.weight": up, f"{CONV}.alpha": np.float32(1)})
  got = changed([read_lora(path, 1.)])["down_blocks.0.resnets.0.conv1.weight"]
  x = normal(1, 8, 8, 4)

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(x, jnp.asarray(kernel), (1, 1), "SAME",
                                        dimension_numbers=("NHWC", "OIHW", "NHWC"))

  np.testing.assert_allclose(conv(x, got), conv(conv(conv(x, down), mid), up) / 3, rtol=2e-4, atol=2e-4)


def test_several_files_add_up(tmp_path):
  layers = [layer((6, 6), rank) for rank in (2, 5)]
  paths = [kohya(tmp_path, {f"{LINEAR}.lora_down.weight": down, f"{LINEAR}.lora_up.weight": up}, str(i))
           for i, (down, up) in enumerate(layers)]
  loras = [read_lora(path, scale) for path, scale in zip(paths, (0.5, -2.))]
  (got,) = changed(loras).values()
  np.testing.assert_allclose(got, 0.5 * product(*layers[0]) - 2 * product(*layers[1]), rtol=1e-5, atol=1e-5)
  assert changed([read_lora(paths[0], 0.)]) == {}


def test_alphas_of_peft(tmp_path):
  module = f"{BLOCK}.attn1.to_q"
  down, up = layer((6, 6), rank=4)
  tensors = {STYLES["peft"](module, "down"): down, STYLES["peft"](module, "up"): up}

  def factor(path):
    (got,) = changed([read_lora(path, 1.)]).values()
    return np.mean(got / product(down, up))

  for values, expected in (({}, 1), ({"unet.lora_alpha": 8, "unet.r": 4}, 2),
                           ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4), ({"text_encoder.lora_alpha": 8}, 1),
                           ({"unet.lora_alpha": 8, "unet.alpha_pattern": {module: 2}}, 0.5),
                           ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2, "to_k": 1}}, 0.5),
                           ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"n1.to_q": 2}}, 2)):
    path = kohya(tmp_path, tensors, metadata=dict(lora_adapter_metadata=json.dumps(values)))
    np.testing.assert_allclose(factor(path), expected, rtol=1e-4)
  folder = tmp_path / "adapter"
  folder.mkdir()
  kohya(folder, tensors, "adapter_model")
  (folder / "adapter_config.json").write_text(json.dumps(
    dict(peft_type="LORA", lora_alpha=16, r=4, use_dora=False, alpha_pattern=None, bias="none")))
  np.testing.assert_allclose(factor(folder), 4, rtol=1e-4)
  (folder / "adapter_config.json").write_text(json.dumps(dict(peft_type="LOHA")))
  with pytest.raises(CheckpointError, match="adapter_config.json: peft_type='LOHA' is not supported"):
    read_lora(folder, 1.)


GOOD = {f"{LINEAR}.lora_down.weight": normal(3, 6), f"{LINEAR}.lora_up.weight": normal(6, 3)}


@pytest.mark.parametrize("more, expected", [
  ({f"{LINEAR}.dora_scale": normal(6, 1)}, r"attn1_to_q.dora_scale is of DoRA, which is not supported; supported are"),
  ({"unet.a.to_q.lora_magnitude_vector": normal(6)}, "is of DoRA"), ({f"{CONV}.hada_w1_a": normal(3, 3)}, "is of LoHa"),
  ({f"{CONV}.lokr_w1": normal(3, 3)}, "lokr_w1 is of LoKr"), ({f"{CONV}.oft_blocks": normal(3, 3)}, "is of OFT"),
  ({f"{CONV}.diff": normal(3, 3)}, "a difference of whole weights"), ({"bundle_emb.x.string_to_param.*": normal(1, 3)},
                                                                     "an embedding bundled"),
  ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": normal(3, 3)}, "a LoRA of FLUX"),
  ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": normal(3, 3)}, "a LoRA of Stable Diffusion 3"),
  ({f"{LINEAR}.extra": normal(3)}, r"attn1_to_q.extra is no part of a plain LoRA; supported"),
  ({f"{LINEAR}.alpha": normal(3)}, r"attn1_to_q.alpha is \[3\], expected one number"),
  ({f"{LINEAR}.alpha": np.float32("nan")}, r"attn1_to_q.alpha is nan, expected a finite number"),
  ({f"{CONV}.lora_down.weight": normal(3, 4, 3, 3)}, f"beside {CONV}.lora_down.weight there is no up matrix"),
  ({f"{CONV}.alpha": np.float32(1)}, f"beside {CONV}.alpha there is no down and no up matrix"),
  ({f"{LINEAR}.lora_up.weight": normal(6)}, r"attn1_to_q.lora_up.weight is F32 \[6\], expected a matrix"),
  ({f"{LINEAR}.lora_up.weight": normal(6, 3).astype(np.int32)}, r"attn1_to_q.lora_up.weight is I32 \[6, 3\]"),
  ({f"{LINEAR}.lora_down.weight": normal(0, 6), f"{LINEAR}.lora_up.weight": normal(6, 0)}, r"is F32 \[0, 6\]"),
  ({"unet." + f"{BLOCK}.attn1.to_q.lora_A.weight": normal(3, 6)}, "are of the same layer; a file may hold one LoRA")])
def test_other_kinds_are_refused_by_name(more, expected, tmp_path):
  path = kohya(tmp_path, GOOD | more)
  with pytest.raises(CheckpointError, match=expected) as error:
    read_lora(path, 1.)
  assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("tensors, expected", [
  ({f"{LINEAR}.lora_down.weight": normal(3, 7), f"{LINEAR}.lora_up.weight": normal(6, 3)},
   r"the layer is down \[3, 7\], up \[6, 3\], and the weight of .*attn1.to_q is \[6, 6\]"),
  ({f"{LINEAR}.lora_down.weight": normal(3, 6), f"{LINEAR}.lora_up.weight": normal(6, 2)}, r"up \[6, 2\]"),
  ({f"{CONV}.lora_down.weight": normal(3, 4, 1, 1), f"{CONV}.lora_up.weight": normal(6, 3, 1, 1)}, "does not fit"),
  ({f"{CONV}.lora_down.weight": normal(3, 4, 3, 3), f"{CONV}.lora_up.weight": normal(6, 3, 3, 3)}, "does not fit"),
  ({"lora_unet_somewhere.lora_down.weight": normal(3, 4), "lora_unet_somewhere.lora_up.weight": normal(6, 3)},
   "lora_unet_somewhere.lora_down.weight is of no linear or convolutional layer of the U-Net; take"),
  ({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": normal(3, 768),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": normal(6, 3)},
   r"another base model: its U-Net attends to text of width 768 \(Stable Diffusion 1.x\), by .*, and the prior's 12"),
  ({f"unet.{BLOCK}.attn1.to_out.0.lora.down.weight": normal(3, 6), f"unet.{BLOCK}.attn1.to_out.0.lora.up.weight":
    normal(6, 3), "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0.lora_down.weight": normal(3, 6),
    "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0.lora_up.weight": normal(6, 3)},
   "are two layers of the same module, down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0")])
def test_layers_that_do_not_fit(tensors, expected, tmp_path):
  path = kohya(tmp_path, tensors)
  with pytest.raises(CheckpointError, match=expected) as error:
    changed([read_lora(path, 1.)])
  assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_that_are_no_lora(tmp_path):
  path = kohya(tmp_path, {"model.diffusion_model.input_blocks.0.0.weight": normal(8, 4, 3, 3)})
  with pytest.raises(CheckpointError, match="is a single file .* and no LoRA"):
    read_lora(path, 1.)
  with pytest.raises(CheckpointError, match="^[^ ]*missing.safetensors does not exist; it should be a file of a LoRA"):
    read_lora(tmp_path / "missing.safetensors", 1.)
  (tmp_path / "empty").mkdir()
  with pytest.raises(CheckpointError, match="has no file that may be a LoRA: name the file, such as"):
    read_lora(tmp_path / "empty", 1.)
  whole = kohya(tmp_path, GOOD)
  for content in (b"", whole.read_bytes()[:-8], whole.read_bytes()[:20], b"\xff" * 64):
    (tmp_path / "cut.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cut.safetensors") as error:
      read_lora(tmp_path / "cut.safetensors", 1.)
    assert "\n" not in str(error.value)
  nan = kohya(tmp_path, GOOD | {f"{LINEAR}.lora_up.weight": np.full((6, 3), np.nan, np.float32)})
  with pytest.raises(CheckpointError, match="a.safetensors: the tensor .*lora_up.weight has 18 values of 18 "):
    changed([read_lora(nan, 1.)])


def modules(folder, component, stem):
  """{name in the checkpoint: weight} of a component's linear and convolutional layers"""
  return {name: value for name, value in load_file(folder / component / f"{stem}.safetensors").items()
          if name.endswith(".weight") and value.ndim in (2, 4) and "embedding." not in name}


@pytest.fixture(scope="module")
def sd_lora(sd_folder, tmp_path_factory):
  """(file of all layers of both networks, {network: {name: change}})"""
  folder, tensors, expected = tmp_path_factory.mktemp("lora"), {}, {}
  parts = (("unet", "diffusion_pytorch_model", "lora_unet"), ("text_encoder", "model", "lora_te"))
  for component, stem, prefix in parts:
    expected[component] = {}
    for name, weight in modules(sd_folder, component, stem).items():
      down, up = layer(weight.shape, rank=2)
      key = f"{prefix}_{name.removesuffix('.weight').replace('.', '_')}"
      tensors |= {f"{key}.lora_down.weight": down / 10, f"{key}.lora_up.weight": up, f"{key}.alpha": np.float32(1)}
      expected[component][name] = product(down / 10, up) / 2
  metadata = dict(ss_network_dim="2", ss_base_model_version="sd_v1", ss_tag_frequency="{}")
  return kohya(folder, tensors, metadata=metadata), expected


def test_a_prior_with_a_lora(sd_folder, sd_lora):
  path, expected = sd_lora
  prior, params = prior_lib.build(sd_folder, dtype=jnp.bfloat16, lora=f"{path}:2, {path}:-1.5")
  assert prior.notes[-1].startswith(f"LoRA: {path} at scale -1.5, ")
  flat = traverse_util.flatten_dict(params["unet"])
  stored = load_file(sd_folder / "unet" / "diffusion_pytorch_model.safetensors")
  paths = names.flax_paths(flat, names.UNET)
  assert len(expected["unet"]) > 30
  for name, kernel_path in paths.items():
    want = stored[name] + 0.5 * expected["unet"].get(name, np.float32(0))
    got = names.to_checkpoint(kernel_path, np.asarray(flat[kernel_path].astype(jnp.float32)))
    # One rounding to bfloat16, after the sum.
    np.testing.assert_allclose(got, want, rtol=2**-8, atol=1e-6)


def test_files_with_the_names_of_latent_diffusion(sd_folder, sd_lora):
  """As MVDream's folders have them: the LoRA's names are matched all the same."""
  model, places = open_component(sd_folder / "unet", "unet")
  table = dataclasses.replace(names.UNET, renamed={"conv_in.weight": "input_blocks.0.0.weight"})
  assert read_additions(sd_lora[0]).merged("unet", model, places, table)[("conv_in", "kernel")].change is not None


def test_a_folder_with_a_lora_baked_in(sd_folder, sd_lora, tmp_path):
  path, expected = sd_lora
  convert.main([str(sd_folder), str(tmp_path / "merged"), f"--lora={path}:0.5"])
  for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
    before, after = (load_file(folder / f"{part}.safetensors") for folder in (sd_folder, tmp_path / "merged"))
    assert set(before) == set(after)
    for name, value in before.items():
      want = value + 0.5 * expected[part.split("/")[0]].get(name, np.float32(0))
      np.testing.assert_allclose(after[name], want, rtol=1e-5, atol=1e-6)


def test_the_cache_of_embeddings_tells_loras_apart(sd_folder, sd_lora, tmp_path):
  path, _ = sd_lora
  other = kohya(tmp_path, load_file(path) | {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": np.float32(2)})
  unet_only = kohya(tmp_path, {key: value for key, value in load_file(path).items() if "lora_te" not in key}, "unet")
  ids = np.zeros((1, 8), np.int32)

  def key(lora):
    return open_clip_text(sd_folder, jnp.float32, additions=read_additions(lora))._key(ids, None)

  plain = key(())
  # What does not change the text encoder needs no new embeddings.
  assert key(f"{path}:0") == key(unet_only) == plain
  assert len({plain, key(path), key(f"{path}:0.5"), key(other), key(f"{path},{path}")}) == 5
  (tmp_path / "copy.safetensors").write_bytes(path.read_bytes())
  assert key(tmp_path / "copy.safetensors") == key(path)


def test_a_lora_is_checked_before_weights_are_there(sd_folder, sd_lora, tmp_path):
  path, _ = sd_lora
  with configs_only():
    prior_lib.open_prior(sd_folder, lora=path)
    module = f"lora_unet_{BLOCK}.attn2.to_k".replace(".", "_")
    other = kohya(tmp_path, {f"{module}.lora_down.weight": normal(2, 768), f"{module}.lora_up.weight": normal(32, 2)})
    with pytest.raises(CheckpointError, match="a LoRA of another base model"):
      prior_lib.open_prior(sd_folder, lora=other)


def test_networks_that_a_prior_lacks(sd_folder, zero123_folders, tmp_path):
  key = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
  path = kohya(tmp_path, {f"{key}.lora_down.weight": normal(2, 12), f"{key}.lora_up.weight": normal(24, 2)})
  with pytest.raises(CheckpointError, match=f"changes the second text encoder .{key}.*it takes additions to the U-Net, "
                                            "the text encoder only"):
    prior_lib.open_prior(sd_folder, lora=path)
  with pytest.raises(CheckpointError, match="it takes additions to the U-Net only"):
    prior_lib.open_prior(zero123_folders["Zero123Pipeline"], lora=path)
  with pytest.raises(ValueError, match="random weights take no LoRA"):
    prior_lib.open_prior("sd15", random_weights=True, lora=path)


@pytest.mark.parametrize("value, expected", [
  ("a.st:0.5", (("a.st", 0.5),)), ("(a.st:0.5, /b/c.st)", (("a.st", 0.5), ("/b/c.st", 1.))),
  ("('a.st:-1', 'b.st')", (("a.st", -1.), ("b.st", 1.))), ("", ()), ("()", ()), ((), ()),
  (("a.st", 0.5), (("a.st", 0.5),)), ((("a.st", 0), "b.st:2"), (("a.st", 0.), ("b.st", 2.))),
  ([["a.st", 0.5]], (("a.st", 0.5),)), ("C:x", (("C:x", 1.),))])
def test_forms_of_the_setting(value, expected):
  assert parse_loras(value) == expected == parse_loras(expected)
  config = settings.defaults()
  config.prior.lora = value
  assert schema.read(settings.reference(config), config, relations=False).prior.lora == expected


@pytest.mark.parametrize("value, expected", [
  ("a.st:nan", "the scale nan of a.st is not from -1000 to 1000"), ("a.st:1e9", "is not from -1000"),
  (3, "3 is neither a text nor a sequence; it must be files FILE:SCALE"), (((1, 2),), "1 is no path of a file"),
  ((("a.st", True),), "the scale True")])
def test_illegal_settings(value, expected):
  config = settings.defaults()
  config.prior.lora = value
  with pytest.raises(schema.ConfigError, match=f"config.prior.lora=.* is not legal: .*{expected}"):
    schema.read(settings.reference(config), config)
