"""The shipped prior opened by diffusers and transformers: the same outputs on random inputs, in float32."""
import jax
import numpy as np
import pytest

from sds_jax.priors import prior as prior_lib, sources
from sds_jax.priors.loading.checkpoint import read_component
from sds_jax.shapeworld import recipe

FOLDER = sources.shipped_folder()


@pytest.fixture(scope="module")
def shipped():
  return prior_lib.build("shapeworld")


def norm_error(got, expected):
  return np.linalg.norm(np.asarray(got) - expected) / np.linalg.norm(expected)


def test_unet_is_that_of_diffusers(torch, diffusers, shipped):
  _, params = shipped
  rng = np.random.default_rng(3)
  shapes = ((2, 16, 16, recipe.UNET["in_channels"]), (2, 20, 128))
  z, text = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
  camera, t = rng.normal(size=(2, recipe.CAMERA_DIM)).astype(np.float32), np.array([7, 801], np.int32)
  unet, _ = read_component(FOLDER / "unet", "unet")
  got = jax.jit(unet.apply)({"params": params["unet"]}, z, t, text, camera)
  theirs = diffusers.UNet2DConditionModel.from_pretrained(FOLDER / "unet").float().eval()
  with torch.no_grad():
    expected = theirs(torch.from_numpy(z.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t.astype(np.int64)),
                      encoder_hidden_states=torch.from_numpy(text), class_labels=torch.from_numpy(camera)).sample
  assert norm_error(got, expected.numpy().transpose(0, 2, 3, 1)) < 1e-4


def test_text_encoder_is_that_of_transformers(torch, transformers, shipped):
  prior, _ = shipped
  texts = ["a green cone on top of a blue cylinder, side view", "a pink house", ""]
  got = prior.embed(texts)["text"]
  tokens = transformers.CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")(
      texts, padding="max_length", truncation=True, return_tensors="pt")
  theirs = transformers.CLIPTextModel.from_pretrained(FOLDER / "text_encoder").float().eval()
  with torch.no_grad():
    expected = theirs(tokens.input_ids).last_hidden_state.numpy()
  assert norm_error(got, expected) < 1e-4
