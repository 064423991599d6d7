"""The networks against what diffusers and transformers gave once (tests/golden), so that no torch is needed."""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sds_jax.priors.loading import checkpoint, t5_stream

GOLDEN = Path(__file__).parents[1] / "golden"


def read(name):
  """The reference of a case; halves, in which inputs are stored, become float32."""
  arrays = load_file(GOLDEN / name / "reference.safetensors")
  return {key: value.astype(np.float32) if value.dtype == np.float16 else value for key, value in arrays.items()}


def assert_close(got, expected):
  assert got.shape == expected.shape and np.abs(expected).max() > 0.1
  assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["unet_sd1", "unet_sd2", "unet_if", "unet_zero123"])
def test_unet(quick_jit, name):
  case, (model, params) = read(name), checkpoint.read_component(GOLDEN / name, "unet")
  got = quick_jit(model.apply, {"params": params}, case["sample"], case["t"], case["text"])
  assert_close(got, case["predicted"])


def test_vae(quick_jit):
  case, (model, params) = read("vae"), checkpoint.read_component(GOLDEN / "vae", "vae")

  def everything(params, image, cotangent, latents):
    (mean, logvar), pullback = jax.vjp(lambda x: model.apply({"params": params}, x, method="encode"), image)
    gradient, = pullback((cotangent, jnp.zeros_like(logvar)))
    return dict(mean=mean, logvar=logvar, gradient=gradient,
                decoded=model.apply({"params": params}, latents, method="decode"))

  got = quick_jit(everything, params, case["image"], case["cotangent"], case["latents"])
  for key, value in got.items():
    assert_close(value, case[key])


@pytest.mark.parametrize("name", ["clip_quick_gelu", "clip_gelu"])
def test_clip(quick_jit, name):
  case, (model, params) = read(name), checkpoint.read_component(GOLDEN / name, "clip_text")
  assert_close(quick_jit(model.apply, {"params": params}, case["ids"]), case["states"])


def test_clip_vision(quick_jit):
  case, (model, params) = read("clip_vision"), checkpoint.read_component(GOLDEN / "clip_vision", "image_encoder")
  tokens = quick_jit(model.apply, {"params": params}, case["image"])
  assert_close(tokens, case["tokens"])
  assert_close(tokens[:, 0], case["whole"])


def test_t5(quick_jit):
  case, (model, params) = read("t5"), checkpoint.read_component(GOLDEN / "t5", "t5")
  assert_close(quick_jit(model.apply, {"params": params}, case["ids"], case["mask"]), case["states"])
  model, parts = t5_stream.open_parts(GOLDEN / "t5", jnp.float32)
  assert_close(t5_stream.encode_in_layers(parts, model, jnp.asarray(case["ids"]), jnp.asarray(case["mask"])),
               case["states"])


def test_the_files_are_small():
  assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.suffix != ".pyc") < 350_000
