"""Single-file checkpoints are read as the folders that they were made of."""
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors import prior as prior_lib
from sds_jax.priors import sources
from sds_jax.priors.base import Options
from sds_jax.priors.families import stable_diffusion
from sds_jax.priors.from_file import compose
from sds_jax.priors.loading.checkpoint import COMPONENTS, open_component, read_component
from sds_jax.priors.loading.clip_vocabulary import tokenizer_files
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.tensor_files import DTYPES
from sds_jax.priors.loading.tokenizers import load_tokenizer

CHOICES = {"SD1": {}, "SD2": dict(prediction_type="v_prediction"), "SDXL": {}, "Zero123": {}}
PARTS = {"SD1": {"unet": "unet", "vae": "vae", "text_encoder": "clip_text"},
         "Zero123": {"unet": "unet", "vae": "vae", "image_encoder": "image_encoder", "cc_projection": "cc_projection"}}
PARTS["SD2"] = PARTS["SD1"]
PARTS["SDXL"] = PARTS["SD1"] | {"text_encoder_2": "clip_text_2"}


@pytest.fixture(scope="module")
def files(ldm_models, tmp_path_factory):
  """{kind: a single file in float16}"""
  folder, paths = tmp_path_factory.mktemp("files"), {}
  for kind, (_, tensors) in ldm_models.items():
    paths[kind] = folder / f"{kind}.safetensors"
    save_file(tensors, paths[kind])
  return paths


def tensors_of(folder):
  """{name: array} of a component's folder."""
  return load_file(next(folder.glob("*.safetensors")))


def assert_equal(first, second):
  assert set(first) == set(second)
  for name, array in first.items():
    np.testing.assert_array_equal(array, second[name].reshape(array.shape), err_msg=name)


@pytest.mark.parametrize("kind", PARTS)
def test_parameters_equal_those_of_the_folder(files, ldm_models, stored_arrays, kind):
  source = sources.find(str(files[kind]), jnp.float32, options=Options(**CHOICES[kind]))
  assert str(source.folder) == str(files[kind]) == source.as_dict()["folder"]
  for part, component in PARTS[kind].items():
    network, arrays = stored_arrays(source.folder / part, component)
    assert_equal(arrays, tensors_of(ldm_models[kind][0] / part))
    config = json.loads((ldm_models[kind][0] / part / "config.json").read_text())
    sizes = {key: getattr(network, key) for key in ("sample_size", "scaling_factor", "force_upcast")
             if hasattr(network, key)}
    assert network == COMPONENTS[component].network.from_config(config | sizes)


@pytest.mark.parametrize("kind", PARTS)
def test_priors(files, kind):
  prior, weights = prior_lib.open_prior(files[kind], **CHOICES[kind])
  assert prior.prediction_type == ("v_prediction" if kind == "SD2" else "epsilon")
  side = {"SD1": 64, "SD2": 96, "SDXL": 128, "Zero123": 32}[kind]
  assert prior.x_shape == (side, side, 4) and (prior.photo is None) == (kind != "Zero123")
  assert set(weights.shapes) == {"unet", "vae", *(["cc_projection"] if kind == "Zero123" else [])}
  assert f"{files[kind]} also has averaged weights, which are not used; config.prior.ema=True takes them" in prior.notes
  if kind == "Zero123":
    assert prior.photo.pose == "distance"


def test_prompts(files, monkeypatch, tmp_path):
  monkeypatch.setenv("SDS_JAX_CACHE", str(tmp_path))
  prior, _ = prior_lib.open_prior(files["SD1"])
  text = prior.embed(["a photo of a hamburger", ""])["text"]
  assert text.shape == (2, 77, 64) and bool(jnp.isfinite(text).all())
  assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_marks_of_v_prediction(ldm_models, tmp_path):
  """Fine-tunes of SDXL hold two empty tensors that say so."""
  tensors = ldm_models["SDXL"][1] | {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
  save_file(tensors, tmp_path / "w.safetensors")
  folder = compose(tmp_path / "w.safetensors", Options())
  scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").content())
  assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"] is True


def test_mvdream(ldm_models, tmp_path):
  """A Stable Diffusion 2 whose U-Net takes the camera."""
  prefix = "model.diffusion_model.camera_embed"
  cameras = {f"{prefix}.0.weight": (256, 16), f"{prefix}.0.bias": (256,), f"{prefix}.2.weight": (256, 256),
             f"{prefix}.2.bias": (256,)}
  save_file(ldm_models["SD2"][1] | {name: np.zeros(shape, np.float16) for name, shape in cameras.items()},
            tmp_path / "sd-v2.1-base-4view.safetensors")
  folder = compose(tmp_path / "sd-v2.1-base-4view.safetensors", Options())
  index, config = (json.loads((folder / name).content()) for name in ("model_index.json", "unet/config.json"))
  assert index["_class_name"] == "MVDreamPipeline" and config["sample_size"] == 32
  assert config["class_embed_type"] == "projection" and config["projection_class_embeddings_input_dim"] == 16
  network, _ = open_component(folder / "unet", "unet")
  assert network.class_embed_type == "projection"


def test_stable_zero123_by_its_name(files, tmp_path):
  (tmp_path / "stable_zero123.safetensors").symlink_to(files["Zero123"])
  assert prior_lib.open_prior(tmp_path / "stable_zero123.safetensors")[0].photo.pose == "polar"


def test_averages(files, ldm_models, stored_arrays, tmp_path):
  folder, (stored, tensors) = compose(files["SD1"], Options(ema=True)), ldm_models["SD1"]
  plain = tensors_of(stored / "unet")
  assert_equal(stored_arrays(folder / "unet", "unet")[1], {name: array + 1 for name, array in plain.items()})
  assert_equal(stored_arrays(folder / "vae", "vae")[1], tensors_of(stored / "vae"))
  save_file({key: array for key, array in tensors.items() if "model_ema" not in key}, tmp_path / "w")
  with pytest.raises(CheckpointError, match="has no averaged weights .model_ema.*config.prior.ema .--ema. to False"):
    compose(tmp_path / "w", Options(ema=True))


def test_what_sd2_predicts_is_asked(files):
  with pytest.raises(CheckpointError, match="SD2.safetensors is a checkpoint of Stable Diffusion 2.x, and no tensor.*"
                                            "set config.prior.prediction_type .*'v_prediction' .*'epsilon'"):
    compose(files["SD2"], Options())
  prior, _ = prior_lib.open_prior(files["SD2"], prediction_type="epsilon")
  assert (prior.prediction_type, prior.image_size) == ("epsilon", 128)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_dtypes(ldm_models, tmp_path, dtype):
  tensors = {key: array.astype(dtype) if array.dtype == np.float16 else array
             for key, array in ldm_models["SD1"][1].items()}
  header, data, kinds = {}, [], {np.dtype(value): key for key, value in DTYPES.items()}
  end = 0
  for key, array in tensors.items():
    begin, end = end, end + array.nbytes
    header[key] = dict(dtype=kinds[array.dtype], shape=list(array.shape), data_offsets=[begin, end])
    data.append(array.tobytes())
  text = json.dumps(header).encode()
  (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))
  _, params = read_component(compose(tmp_path / "w.safetensors", Options()) / "vae", "vae")
  name = "first_stage_model.encoder.conv_in.weight"
  np.testing.assert_array_equal(params["encoder"]["conv_in"]["kernel"],
                                tensors[name].astype(np.float32).transpose(2, 3, 1, 0))


def test_configurations_of_ones_own(files, ldm_models, tmp_path):
  config = json.loads((ldm_models["SD1"][0] / "unet" / "config.json").read_text()) | dict(attention_head_dim=4)
  for name, value in (("unet/config", config), ("scheduler/scheduler_config", stable_diffusion.SD_SCHEDULER | dict(
      prediction_type="v_prediction"))):
    (tmp_path / name).parent.mkdir()
    (tmp_path / f"{name}.json").write_text(json.dumps(value))
  prior, weights = prior_lib.open_prior(files["SD1"], config=str(tmp_path))
  assert weights.networks["unet"].attention_head_dim == 4 and prior.prediction_type == "v_prediction"
  with pytest.raises(CheckpointError, match="config.prior.config='nowhere' is no folder"):
    compose(files["SD1"], Options(config="nowhere"))


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
MIDDLE = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
DAMAGES = {
  "missing": (lambda t: t.pop("model.diffusion_model.out.2.bias"),
              r"missing in the file \(1\): model.diffusion_model.out.2.bias \(conv_out.bias\)"),
  "more": (lambda t: t.update({"model.diffusion_model.extra.weight": np.zeros(1, np.float16)}),
           r"unexpected in the file \(1\): model.diffusion_model.extra.weight"),
  "wrong shape": (lambda t: t.update({"model.diffusion_model.out.2.bias": np.zeros(5, np.float16)}),
                  r"model.diffusion_model.out.2.bias \(conv_out.bias\) is \[5\] in the file, \[4\]"),
  "no text": (lambda t: [t.pop(key) for key in list(t) if key.startswith("cond_stage_model.")],
              "a single file without text encoder, a part of a model: name it by config.prior.unet=FILE"),
  "no middle": (lambda t: t.pop(MIDDLE), f"w: it lacks the tensor {MIDDLE.split('model.', 2)[2]}"),
  "inpainting": (lambda t: t.update({FIRST: np.zeros((32, 9, 3, 3), np.float16)}), "inpainting"),
  "a block": (lambda t: [t.pop(key) for key in list(t) if ".input_blocks.2." in key], "which is no form of latent"),
  "integers": (lambda t: t.update({"model.diffusion_model.out.2.bias": np.zeros(4, np.int32)}),
               "model.diffusion_model.out.2.bias has dtype I32"),
  "flat": (lambda t: t.update({FIRST: np.zeros(4, np.float16)}), "w is a single-file checkpoint"),
  "empty": (lambda t: t.update({"model.diffusion_model.out.2.weight": np.zeros((0, 32, 3, 3), np.float16)}),
            "its tensor out.2.weight is .0, 32, 3, 3., expected 4 axes"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files(ldm_models, tmp_path, case):
  harm, words = DAMAGES[case]
  tensors = dict(ldm_models["SD1"][1])
  harm(tensors)
  save_file(tensors, tmp_path / "w.safetensors")
  (tmp_path / "w.safetensors").rename(tmp_path / "w")
  with pytest.raises(CheckpointError, match=words) as caught:
    compose_and_open(tmp_path / "w")
  assert str(tmp_path / "w") in str(caught.value)


def compose_and_open(path):
  open_component(compose(path, Options()) / "unet", "unet")


def test_torchs_archives(ldm_models, stored_arrays, tmp_path):
  torch = pytest.importorskip("torch")
  folder, tensors = ldm_models["Zero123"]
  torch.save(dict(state_dict={key: torch.from_numpy(array) for key, array in tensors.items()}, global_step=165000),
             tmp_path / "zero123-xl.ckpt")
  with pytest.warns(UserWarning, match="is a pickle, of which only the tensors are read"):
    composed = compose(tmp_path / "zero123-xl.ckpt", Options())
  for part in ("cc_projection", "image_encoder"):
    assert_equal(stored_arrays(composed / part, part)[1], tensors_of(folder / part))


def test_the_tokenizer(tmp_path):
  """Its vocabulary follows from the merges; ids of the published tokenizer."""
  for name, content in tokenizer_files("!").items():
    (tmp_path / name).write_bytes(content)
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.backend.get_vocab_size() == 49408
  assert tokenizer(["a photo of a cat"])[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
