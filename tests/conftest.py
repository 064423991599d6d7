"""A strict session: 8 virtual CPU devices, no silent dtype or rank promotion, warnings are errors (pyproject.toml)."""
import ast
import contextlib
import dataclasses
import doctest
import importlib
import itertools
import os
import pathlib
import subprocess
import sys
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags, logging
from jax._src.interpreters import mlir
from jax.experimental.compilation_cache import compilation_cache

from sds_jax.drills import tiny


def of_quick_compilation():
  """XLA's flags under which a step of a tiny run compiles in a third of the time; "" if this XLA does not know them.

  What XLA does not know ends a process, and it reads the flags once: hence another process, which tries them.
  """
  flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  tried = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], check=False, capture_output=True,
                         env={**os.environ, "XLA_FLAGS": flags})
  return flags if tried.returncode == 0 else ""


if "XLA_FLAGS" not in os.environ:  # XLA has not read it yet; workers inherit it; XLA_FLAGS="" asks for XLA's defaults
  os.environ["XLA_FLAGS"] = of_quick_compilation()


def share_lowering_contexts(uses=100):
  """Lets `uses` lowerings in a row share one MLIR context.

  JAX makes a context for each. That takes longer than the rest of the lowering of a single operation, of which tests
  run thousands, and each context keeps a megabyte. An older or newer JAX without this function goes without.
  """
  make = getattr(mlir, "make_ir_context", None)
  if make is None:
    return
  number, shared = itertools.count(), [None]

  def context():
    if next(number) % uses == 0:  # in a while a new one, since nothing that a context holds is freed before it
      shared[0] = make()
    return shared[0]

  mlir.make_ir_context = context


share_lowering_contexts()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # what tests run takes longer to compile than to run


LONGEST = ("docs/test_notebooks", "training/test_image3d", "training/test_parallel", "training/test_estimators",
           "commands/test_run", "commands/test_processes", "drills/test_kill", "drills/test_fuzz",
           "rendering/test_render",
           "shapeworld_training/test_train_view_prior", "shapeworld_training/test_train_multiview_prior",
           "shapeworld_training/test_train_prior", "shapeworld/test_shipped_view_prior", "training/test_image2d",
           "training/test_scenes", "training/test_multiview", "training/test_distil", "priors/test_published_configs",
           "testbed/test_study", "training/test_divergence", "shapeworld/test_shipped_prior", "training/test_loop")
"""Files that take longest. They go first: a worker that begins with one of them last keeps the others waiting."""


def pytest_configure(config):
  """Workers take files in the order below; of itself xdist begins with those of most tests, which are short ones."""
  if hasattr(config.option, "loadscopereorder"):
    config.option.loadscopereorder = False


def thorough():
  """Returns the beginnings of ids in thorough.txt."""
  lines = (pathlib.Path(__file__).parent / "thorough.txt").read_text(encoding="utf-8").splitlines()
  return tuple(line for line in lines if line and not line.startswith("#"))


THOROUGH = thorough()


def pytest_itemcollected(item):
  """Marks the tests of thorough.txt, before the option -m is applied."""
  if item.nodeid.startswith(THOROUGH):
    item.add_marker(pytest.mark.thorough)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
  ranks = {name: rank for rank, name in enumerate(LONGEST)}
  items.sort(key=lambda item: ranks.get("/".join(item.path.with_suffix("").parts[-2:]), len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
  """Embeddings of prompts are kept for this session only, and in nobody's home."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SDS_JAX_CACHE", str(tmp_path_factory.mktemp("sds_jax_cache")))
    yield


@pytest.fixture(scope="session", autouse=True)
def shared_executables(tmp_path_factory):
  """Equal programs are compiled once, by whichever worker comes first; the cache is gone with the session."""
  folder = tmp_path_factory.getbasetemp()
  folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
  settings = {"jax_compilation_cache_dir": str(folder / "xla"), "jax_persistent_cache_min_compile_time_secs": 0.2,
              "jax_compilation_cache_max_size": 2**32}  # with a limit it has locks: no worker reads half a file
  before = {name: getattr(jax.config, name) for name in settings}
  compilation_cache.reset_cache()
  for name, value in settings.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def call_main(monkeypatch, capsys):
  """(main, program, *arguments) -> (exit status, stdout, stderr) of a command line; its flags are gone afterwards."""
  def call(main, program, *arguments):
    before, verbosity = set(flags.FLAGS), logging.get_verbosity()
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    capsys.readouterr()
    status = 0
    try:
      with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # ml_collections
        main()
    except SystemExit as stop:
      status = stop.code or 0
    finally:
      logging.set_verbosity(verbosity)
      flags.FLAGS.unparse_flags()
      for name in set(flags.FLAGS) - before:
        with contextlib.suppress(AttributeError):
          delattr(flags.FLAGS, name)
    return status, *capsys.readouterr()

  return call


@pytest.fixture(scope="session")
def without_example():
  """(module's dotted name) -> its public functions and classes without an example; the examples of the others run."""
  def run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0
    found = {test.name.rpartition(".")[2] for test in doctest.DocTestFinder().find(module) if test.examples}
    tree = ast.parse(pathlib.Path(module.__file__).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and not node.name.startswith("_") and node.name not in found]

  return run


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory):
  """A folder with a prior that knows ShapeWorld's words and cameras: 16x16 images, random weights, a few thousand."""
  return tiny.write_prior(tmp_path_factory.mktemp("tiny_prior"))


@pytest.fixture(scope="session")
def tiny_view_prior(tmp_path_factory):
  """A folder with a prior that is told a picture and a pose: 16x16 images, random weights, a few thousand."""
  return tiny.write_view_prior(tmp_path_factory.mktemp("tiny_view_prior"))


@pytest.fixture(scope="session")
def linear_network():
  """(params, z, t, cond) -> what a network would: linear in z, and different for each text, camera and photo."""
  def denoise(params, z, t, cond):
    shift = cond["text"].mean((1, 2)) + cond["camera"].mean(1) + 1e-3 * t.astype(z.dtype)
    linear = (0.5 + params["unet"]["conv_in"]["bias"].mean()) * z + 0.1 * shift[:, None, None, None]
    return linear + 0.1 * cond["x"] if "x" in cond else linear

  return denoise


@pytest.fixture
def linear_networks(monkeypatch, linear_network):
  """The priors that this test opens have the linear network, with which a step compiles in half the time."""
  from sds_jax.priors import prior as prior_lib
  open_prior = prior_lib.open_prior

  def opened(*args, **kwargs):
    prior, weights = open_prior(*args, **kwargs)
    return dataclasses.replace(prior, denoise=linear_network, predict=linear_network), weights

  monkeypatch.setattr(prior_lib, "open_prior", opened)


_TINY_SD_UNET = dict(
  sample_size=8, in_channels=4, out_channels=4, block_out_channels=[8], layers_per_block=1, norm_num_groups=4,
  down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"], cross_attention_dim=8,
  attention_head_dim=2)
TINY_PUBLISHED = {
  "sd15": dict(
    unet=_TINY_SD_UNET,
    vae=dict(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[8, 16], layers_per_block=1,
             down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=4),
    scheduler=dict(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)),
  "if-m": dict(
    unet=dict(_TINY_SD_UNET, in_channels=3, out_channels=6),
    scheduler=dict(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2"))}
TINY_PUBLISHED["zero123"] = TINY_PUBLISHED["sd15"] | dict(
  unet=dict(_TINY_SD_UNET, in_channels=8), image_encoder=dict(projection_dim=8),
  cc_projection=dict(_class_name="CLIPCameraProjection", embedding_dim=8))
TINY_PUBLISHED["sdxl"] = TINY_PUBLISHED["sd15"] | dict(
  unet=dict(_TINY_SD_UNET, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 + 6 * 4))
TINY_PUBLISHED["mvdream"] = TINY_PUBLISHED["sd15"] | dict(
  unet=dict(_TINY_SD_UNET, class_embed_type="projection", projection_class_embeddings_input_dim=16))
"""In place of `published.PRIORS`: 16x16 images as 8x8x4 latents, and 8x8 images whose network predicts a variance; the
former told a picture; the former with a vector of the text, of 6 features, and sizes; and the former with a camera."""


@pytest.fixture
def tiny_published(monkeypatch):
  """The published priors of this test are tiny ones; they are made with random weights."""
  from sds_jax.priors import published
  monkeypatch.setattr(published, "PRIORS", TINY_PUBLISHED)
  return TINY_PUBLISHED


def _tiny(name):
  from sds_jax.priors import prior, published
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(published, "PRIORS", TINY_PUBLISHED)
    return prior.build(name, random_weights=True)


@pytest.fixture(scope="session")
def tiny_latent():
  """(prior, its parameters): a latent prior of a few thousand random parameters, as `sd15` is with random weights."""
  return _tiny("sd15")


@pytest.fixture(scope="session")
def tiny_pooled():
  """(prior, its parameters): a latent prior with a vector of the text, as `sdxl` is with random weights."""
  return _tiny("sdxl")


@pytest.fixture(scope="session")
def tiny_settings(tiny_prior):
  """Dotted name -> value, for a run of a few steps of a tiny field under the tiny prior."""
  return {"prior.path": str(tiny_prior), "parallel.devices": 1, **tiny.SETTINGS}


@pytest.fixture(scope="session")
def tiny_config(tiny_settings):
  """(**{dotted name: value}) -> the tiny settings with these changes, unlocked and not yet validated."""
  from sds_jax import settings

  def make(changes=None):
    config = settings.defaults("text3d")
    config.update_from_flattened_dict({**tiny_settings, **(changes or {})})
    return config

  return make
