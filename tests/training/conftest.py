"""What the tests of training share: runs of a few steps under the tiny prior."""
import jax
import pytest


@pytest.fixture(scope="session")
def prior_and_params(tiny_prior):
  from sds_jax.priors import prior
  return prior.build(tiny_prior)


@pytest.fixture(scope="session")
def tiny_image_settings(tiny_settings):
  """The tiny settings, over those of image-to-3D."""
  return {**{name: value for name, value in tiny_settings.items() if name != "prompt"}, "picture.elevation_deg": "20"}


@pytest.fixture(scope="session")
def ready(tiny_config, prior_and_params):
  """(changes) -> (scene, step function, its arguments (state, prior_params, text, key))."""
  from sds_jax.training import conditions, step
  from sds_jax.training.validation import validate
  prior, prior_params = prior_and_params

  def make(changes=None, seed=0):
    scene = step.make_scene(validate(tiny_config(changes)))
    key = jax.random.key(seed)
    state = jax.jit(lambda k: step.new_state(scene, k))(jax.random.fold_in(key, 2**31 - 1))
    text = conditions.embed_prompts(prior, scene.config)
    return scene, step.make_step(scene, prior), (state, dict(unet=prior_params["unet"]), text, key)

  return make
