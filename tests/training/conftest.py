"""What the tests of training share: runs of a few steps under the tiny prior, compiled once for all of them."""
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session", autouse=True)
def shared_executables(tmp_path_factory):
  """Runs with equal settings compile to equal programs; XLA's persistent cache makes one compilation of them."""
  compilation_cache.reset_cache()
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
  yield
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
    state = step.new_state(scene, jax.random.fold_in(key, 2**31 - 1))
    text = step.embed_prompts(prior, prior_params, scene.config)
    return scene, step.make_step(scene, prior), (state, dict(unet=prior_params["unet"]), text, key)

  return make


@pytest.fixture(scope="session")
def quick_compile():
  """(function, *args, **jit options) -> its executable, without LLVM's optimizations: nothing here runs for long."""
  def compile_quickly(function, *args, **options):
    return jax.jit(function, **options).lower(*args).compile({"xla_backend_optimization_level": 0})

  return compile_quickly
