"""Leaving out the last layers of CLIP's text encoder; against diffusers' way of doing it in parity/."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.networks.clip import CLIPTextModel

IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])


def test_skipping_is_a_shorter_network(clip, quick_jit):
  _, model, params = clip
  skipped = quick_jit(model.clone(clip_skip=1).apply, {"params": params}, IDS)
  shorter = quick_jit(model.clone(num_hidden_layers=1).apply, {"params": params}, IDS)
  np.testing.assert_array_equal(skipped, shorter)
  text_model = params["text_model"]
  without_last = text_model["encoder"] | dict(layers_1=jax.tree.map(jnp.zeros_like, text_model["encoder"]["layers_1"]))
  # A layer of zeros adds nothing, so that the whole network with it is the network that skips it.
  whole = quick_jit(model.apply, {"params": dict(text_model=text_model | dict(encoder=without_last))}, IDS)
  np.testing.assert_array_equal(whole, skipped)
  assert float(jnp.abs(quick_jit(model.apply, {"params": params}, IDS) - skipped).max()) > 1e-2


def test_no_config_has_it(clip):
  with pytest.raises(ValueError, match="clip_skip=1 is not a known option"):
    CLIPTextModel.from_config({**clip[0], "clip_skip": 1})


@pytest.mark.parametrize("skip", [-1, 3])
def test_as_many_layers_as_there_are(clip, skip):
  with pytest.raises(ValueError, match=f"clip_skip={skip} of 2 layers"):
    clip[1].clone(clip_skip=skip).apply({"params": clip[2]}, IDS)
