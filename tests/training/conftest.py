"""What the tests of training share: runs of a few steps under the tiny prior, compiled once for all of them."""
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session", autouse=True)
def shared_executables(tmp_path_factory):
  """Equal programs compile once, by XLA's persistent cache, and without LLVM's optimizations: nothing runs for long."""
  compilation_cache.reset_cache()
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def prior_and_params(tiny_prior):
  from sds_jax.priors import prior
  return prior.build(tiny_prior)


@pytest.fixture(scope="session")
def ready(tiny_config, prior_and_params):
  """(changes) -> (scene, step function, its arguments (state, prior_params, text, key))."""
  from sds_jax.training import step
  from sds_jax.training.validation import validate
  prior, prior_params = prior_and_params

  def make(changes=None, seed=0):
    scene = step.make_scene(validate(tiny_config(changes)))
    key = jax.random.key(seed)
    state = jax.jit(lambda k: step.new_state(scene, k))(jax.random.fold_in(key, 2**31 - 1))
    text = step.embed_prompts(prior, scene.config)
    return scene, step.make_step(scene, prior), (state, dict(unet=prior_params["unet"]), text, key)

  return make
