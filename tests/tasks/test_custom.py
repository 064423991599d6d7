"""A user's own 3D representation through the command's path: configuration, steps, outputs, errors, many devices."""
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import schema, settings as settings_lib, tasks
from sds_jax.commands.train import train
from sds_jax.generators import custom
from sds_jax.generators.protocol import Draws, Views
from sds_jax.io import files
from sds_jax.priors import prior as prior_lib
from sds_jax.schema import ConfigError
from sds_jax.settings import common
from sds_jax.settings.recipes import image3d, text3d as recipes
from sds_jax.settings.export import ExportSettings
from sds_jax.tasks import Image3DTask, Text3DTask, outputs
from sds_jax.training import layout as layout_lib
from sds_jax.training.keys import step_keys
from sds_jax.training.step import Context
from sds_jax.views import cameras

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
import jax, jax.numpy as jnp
from sds_jax.views.cameras import camera_rays

class Ball:
  def init(self, key):
    return dict(centre=0.1 * jax.random.normal(key, (3,)), radius=jnp.float32(0.5), colour=jnp.zeros(3))

  def render(self, params, camera, size, key):
    rays = camera_rays(camera, size, size)
    towards = params["centre"][None, None] - rays.origins
    along = jnp.sum(towards * rays.directions, axis=-1)
    gap = jnp.linalg.norm(towards - along[..., None] * rays.directions, axis=-1)
    opacity = jax.nn.sigmoid(20.0 * (params["radius"] - gap))
    return dict(rgb=opacity[..., None] * jax.nn.sigmoid(params["colour"])[None, None], opacity=opacity)

  def export(self, params, folder):
    (folder / "ball.txt").write_text(f"{float(params['radius']):.3f}")
    return dict(ball=folder / "ball.txt")

def make(size):
  return Ball()

def no_opacity(size):
  made = Ball()
  made.render = lambda params, camera, size, key: dict(rgb=jnp.zeros((size, size, 3)))
  return made

def wrong_size(size):
  made = Ball()
  made.render = lambda params, camera, size, key: dict(rgb=jnp.zeros((4, 4, 3)), opacity=jnp.zeros((4, 4)))
  return made

def whole_numbers(size):
  made = Ball()
  made.init = lambda key: dict(Ball().init(key), count=jnp.int32(3))
  return made

def broken(size):
  raise RuntimeError("no such shape")
'''


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
  folder = tmp_path_factory.mktemp("user")
  (folder / "my_ball.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    yield


@pytest.fixture(scope="module")
def own_settings(tiny_settings):
  """The tiny settings without those that have no effect on a representation of one's own."""
  return {name: value for name, value in tiny_settings.items() if not common.concerns_fields(name)}


@pytest.fixture(scope="module")
def make_task(own_settings):
  def make(changes=None):
    config = recipes.from_words("my_ball:make,shapeworld")
    config.update_from_flattened_dict({**own_settings, **(changes or {})})
    return Text3DTask(settings_lib.validate(config))
  return make


def test_a_run_leaves_what_a_run_leaves(make_task, linear_networks, tmp_path):
  """Every output that does not need a density, and the representation's own file; the ball has moved."""
  task = make_task()
  train(task, tmp_path, 0.0)
  for name in ("report.html", "renders.png", "config.json", "metrics.jsonl", "ball.txt"):
    assert (tmp_path / name).stat().st_size > 0, name
  assert not (tmp_path / "mesh.glb").exists()
  assert files.read_json(tmp_path / "config.json")["config"]["generator"]["name"] == "my_ball:make"
  state = make_task().restore(tmp_path)
  begun = task.new_state(jax.random.key(0))
  assert float(state.params["field"]["radius"]) != float(begun.params["field"]["radius"])


@pytest.mark.parametrize("own", [True, False])
def test_the_photo_is_compared_with_either_representation(own):
  """Traces the losses of the photo's view; a representation without normals and depth gives zeros."""
  config = settings_lib.defaults("image3d")
  config.update_from_flattened_dict({"render.height": 16, "render.width": 16,
                                     "generator.name": "my_ball:make" if own else "field"})
  task = Image3DTask(settings_lib.validate(config))
  term = task.photo_terms(None, None, task.stages[0])[-1]
  size = term.generator.size
  photo = dict(photo=jnp.ones((size, size, 4)), azimuth=jnp.float32(0.3), elevation=jnp.float32(0.2))

  def run(key):
    state = task.new_state(key)
    draws = Draws(step_keys(key, jnp.int32(0)), jnp.arange(2), jnp.float32(0.5))
    return term(Views(jnp.zeros((2, size, size, 3)), {}), Context(state.params, state, {}, {}, photo, draws))

  total, parts = jax.eval_shape(run, jax.random.key(1))
  assert total.shape == () and {name: value.shape for name, value in parts.items()} == dict.fromkeys(parts, ())
  assert set(parts) == {"rgb", "mask", "reference_overflow"}


def test_the_image_of_the_ball_is_a_disc():
  """Through one camera on white: the radius of the disc is that of the sphere's silhouette, colour over white."""
  ball = custom.load_representation("my_ball:make", 64)
  params = dict(centre=jnp.zeros(3), radius=jnp.float32(0.5), colour=jnp.array([10.0, -10.0, -10.0]))
  camera = cameras.orbit(0.3, 0.2, 2.7, 0.8)
  out = custom.composite(ball.render(params, camera, 64, jax.random.key(0)), jnp.ones((64, 64, 3)))
  covered = float((out.opacity > 0.5).mean())
  angle = np.arcsin(0.5 / 2.7)
  radius = np.tan(angle) * float(camera.focal)  # in image heights
  assert covered == pytest.approx(np.pi * radius**2, rel=0.03)
  np.testing.assert_allclose(out.rgb[0, 0], 1.0, atol=1e-3)
  np.testing.assert_allclose(out.rgb[32, 32], [1.0, 0.0, 0.0], atol=1e-2)


def test_eight_devices_do_what_one_does(make_task, tiny_prior, linear_networks):
  prior, prior_params = prior_lib.build(tiny_prior)
  ends = []
  for devices in (1, 8):
    task = make_task({"training.views": 8, "parallel.devices": devices})
    layout, program = layout_lib.make_layout(task.settings.parallel, 8), task.program(prior)
    text = program.embed()
    state = layout.put_state(jax.jit(lambda key, p=program, t=text: p.begin(prior_params, t, key, None))(
        jax.random.key(5)))
    fixed = (layout.put_prior(prior_params), layout.put_conditions(text), layout.put(jax.random.key(0)))
    step = layout.compile(program.make_step(program.stages[0], layout.share), state, fixed)
    for _ in range(2):
      state, _ = step(state, *fixed)
    ends.append(layout.fetch(state.params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)


def test_the_console_command_finds_modules_in_the_current_folder(tmp_path):
  """A representation that fails says so in one line: its module was found beside the user's files."""
  (tmp_path / "mine.py").write_text("def make(size):\n  raise RuntimeError('found it')\n", encoding="utf-8")
  script = "from sds_jax.commands.main import main; main()"
  done = subprocess.run([sys.executable, "-P", "-c", script, "--config=text", "--config.generator.name=mine:make"],
                        cwd=tmp_path, capture_output=True, text=True, check=False,
                        env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert done.returncode == 2 and "found it" in done.stderr, done.stderr


@pytest.mark.parametrize("name, words", [
    ("my_ball:nothing", "AttributeError"), ("no_such_module:make", "ModuleNotFoundError"),
    ("my_ball:broken", "no such shape"), ("my_ball:no_opacity", "render returns opacity nothing"),
    ("my_ball:wrong_size", r"rgb \(4, 4, 3\)"), ("my_ball:whole_numbers", "only floating-point arrays can be learnt")])
def test_a_representation_that_does_not_work(make_task, name, words):
  task = make_task({"generator.name": name})
  with pytest.raises(ConfigError, match=f"config.generator.name='{name}'.*{words}"):
    task.generator  # noqa: B018


@pytest.mark.parametrize("job, changes, images", [
  ("text3d", {"distillation.latent_until": 0.5}, "normals"), ("image3d", {"loss.smoothness": 2.0}, "normals"),
  ("text3d", {"prior.controlnet": "depth", "prior.name": "sd15"}, "depth"),
  ("text3d", {"prior.controlnet": "normal", "prior.name": "sd15"}, "normals"),
  ("image3d", {"loss.depth": 1.0, "picture.depth": "depth.png"}, "depth")])
def test_images_that_a_setting_reads(job, changes, images):
  config = settings_lib.defaults(job)
  config.update_from_flattened_dict({**changes, "generator.name": "my_ball:make"})
  (setting, value), *_ = changes.items()
  with pytest.raises(ConfigError, match=f"render returns no {images}, which config.{setting}={value!r}"):
    tasks.of(settings_lib.validate(config)).generator  # noqa: B018


@pytest.mark.parametrize("name, value", [
  ("field.mlp.hidden", 8), ("occupancy.every", 0), ("shading.ambient", 0.25), ("render.num_samples", 8),
  ("export.num_samples", 8), ("loss.orientation", 0.5)])
def test_settings_without_effect_are_refused(make_task, name, value):
  with pytest.raises(ConfigError, match=f"{name}={value} has no effect on a representation of your own.*leave it"):
    make_task({name: value})


@pytest.mark.parametrize("of_job, words", [
  (recipes, "dreamfusion,my_ball:make"), (recipes, "my_ball:make,sd15"), (image3d, "my_ball:make,magic123")])
def test_recipes_with_a_representation_of_ones_own(of_job, words):
  config = of_job.from_words(words)
  own, default = (common.flat(schema.read(settings_lib.reference(config), c, relations=False))
                  for c in (config, settings_lib.defaults(config.job)))
  different = {name for name in own if own[name] != default[name]}
  assert "generator.name" in different and not any(map(common.concerns_fields, different))


@pytest.mark.parametrize("export, line", [
  (lambda params, folder: dict(ball=folder / "ball.txt"), "ball: "),
  (lambda params, folder: 1 / 0, "ZeroDivisionError"), (lambda params, folder: dict(ball=3), "TypeError")])
def test_the_report_is_written_whatever_the_own_export_does(tmp_path, monkeypatch, capsys, export, line):
  """Replaces the renders and the report; files of a mesh of an earlier run are gone."""
  monkeypatch.setattr(outputs, "write_renders", lambda *_: tmp_path / "renders.png")
  monkeypatch.setattr(outputs.report, "write_report", lambda folder, *_, **__: (folder / "report.html").write_text(""))
  monkeypatch.setattr(outputs.run_files, "delete", lambda path: path.unlink(missing_ok=True))
  (tmp_path / "mesh.glb").write_text("")
  generator = custom.CustomGenerator(types.SimpleNamespace(export=export), None, None, 16)
  view = types.SimpleNamespace(export=ExportSettings(mesh=False, turntable=False))
  state = types.SimpleNamespace(shown=dict(field={}), occupancy=None)
  outputs.write_outputs(generator, view, state, tmp_path, outputs.ReportPage("a ball", {}), {})
  assert line in capsys.readouterr().out
  assert (tmp_path / "report.html").is_file() and not (tmp_path / "mesh.glb").exists()
