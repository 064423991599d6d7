"""Pictures by the command: what it leaves, its modes, its mistakes, a generator of the user's own."""
import json

import numpy as np
import pytest
from PIL import Image

from sds_jax import settings
from sds_jax.commands import export
from sds_jax.io import images, run_files
from sds_jax.tasks import Image2DTask

CONFIG = "--config=configs/image2d.py"
ONE = "--config.parallel.devices=1"
OWN = """
import jax, jax.numpy as jnp
class Plain:
  def __init__(self, size):
    self.size = size
  def init(self, key):
    return jnp.zeros(3)
  def apply(self, params, key):
    return jnp.broadcast_to(jax.nn.sigmoid(params), (1, self.size, self.size, 3))
def broken(size):
  raise RuntimeError("no such thing")
class Wide(Plain):
  def apply(self, params, key):
    return jnp.zeros((1, self.size, 2 * self.size, 3))
class Whole(Plain):
  def init(self, key):
    return jnp.zeros(3, jnp.int32)
  def apply(self, params, key):
    return super().apply(params.astype(jnp.float32), key)
class Shown(Plain):
  def show(self):
    pass
"""


@pytest.fixture
def flags_of(tiny_prior):
  settings = {"prior.path": tiny_prior, "generator.size": 16, "training.steps": 4, "training.views": 2,
              "training.render_every": 2, "optimizer.warmup_steps": 1, "parallel.devices": 1}
  return [f"--config.{name}={value}" for name, value in settings.items()]


def size_of(path):
  return np.asarray(Image.open(path)).shape


def test_what_it_leaves_and_makes_again(command, flags_of, tmp_path):
  status, out, err = command(f"{CONFIG}:fourier", *flags_of, f"--workdir={tmp_path}")
  assert status == 0, err
  assert "estimator: sds, guidance_scale=5.0 (diffusers), weighting=sigma2, t from 0.02 to" in out
  assert str(tmp_path / "image.png") in out and "drawn at 64x64" in out
  assert size_of(tmp_path / "image.png") == (16, 16, 3) and size_of(tmp_path / "image_large.png") == (64, 64, 3)
  assert (tmp_path / "progress" / "000002.png").exists() and (tmp_path / "metrics.jsonl").exists()
  assert json.loads((tmp_path / "config.json").read_text())["config"]["generator"]["name"] == "fourier"
  (tmp_path / "rgba_1.png").write_bytes(b"of the user")
  with run_files.recording(tmp_path):
    images.write_png(np.zeros((1, 1, 3)), tmp_path / "rgba_2.png")  # of another generator, before
  before = (tmp_path / "image.png").read_bytes()
  (tmp_path / "image.png").unlink()
  status, out, err = command("--mode=export", f"--workdir={tmp_path}")
  assert status == 0 and (tmp_path / "image.png").read_bytes() == before and not (tmp_path / "rgba_2.png").exists(), err
  assert (tmp_path / "rgba_1.png").read_bytes() == b"of the user"
  for mode in ("render", "evaluate"):
    status, _, err = command(f"--mode={mode}", f"--workdir={tmp_path}")
    assert status == 2 and err.startswith(f"error: --mode={mode} is for objects") and err.count("\n") == 1


def test_several_pictures_and_one_with_opacity(command, flags_of, linear_networks, tmp_path):
  two = "--config.generator.particles=2"
  status, _, err = command(f"{CONFIG}:translucent", *flags_of, two, f"--workdir={tmp_path}")
  assert status == 0, err
  assert size_of(tmp_path / "rgba_1.png") == (16, 16, 4) and (tmp_path / "images.png").exists()
  assert (tmp_path / "image_0.png").read_bytes() != (tmp_path / "image_1.png").read_bytes()


def test_a_generator_of_the_users_own(command, flags_of, linear_networks, tmp_path, monkeypatch):
  (tmp_path / "my_own.py").write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  status, _, err = command(f"{CONFIG}:my_own:Plain", *flags_of, f"--workdir={tmp_path / 'run'}")
  assert status == 0, err
  assert np.ptp(np.asarray(Image.open(tmp_path / "run" / "image.png")), axis=(0, 1)).max() == 0
  for name, part in (("broken", "'my_own:broken' does not work (RuntimeError: no such thing)"),
                     ("Wide", "it must return images [1, 16, 16, 3] float32"), ("Whole", "only floating-point arrays"),
                     ("Shown", "does not work (TypeError")):
    status, _, err = command(f"{CONFIG}:my_own:{name}", *flags_of, f"--workdir={tmp_path / 'other'}")
    assert status == 2 and part in err and err.count("\n") == 1, err


@pytest.mark.parametrize("arguments, parts", [
  ([f"{CONFIG}:fourrier"], ("'fourrier'", "no generator (legal: pixels, fourier")),
  ([f"{CONFIG}:dreamfusion"], ("dreamfusion is a recipe of objects",)),
  ([CONFIG, "--config.generator.viewpoint=(0.0, 91.0)"], ("generator.viewpoint=(0.0, 91.0)", "from -90 to 90")),
  ([CONFIG, ONE, "--config.distillation.estimator=dds", "--config.distillation.source_prompt=a zebra"],
   ("config.distillation.source_prompt='a zebra'", "zebra")),
  ([CONFIG, ONE, "--config.distillation.estimator=csd", "--config.distillation.csd.negative_prompt=a bleu sphere"],
   ("config.distillation.csd.negative_prompt='a bleu sphere'", "bleu")),
  ([f"{CONFIG}:pixels,fourier"], ("more than one generator (pixels, fourier)",)),
  ([CONFIG, "--config.generator.name=oil"], ("config.generator.name='oil'", "one of pixels, fourier")),
  ([CONFIG, "--config.training.views=3", "--config.generator.particles=2"], ("no multiple", "set it to 2")),
  ([CONFIG, "--config.prompt=a red cube|a blue cube"], ("has 2 parts", "take the generator shared")),
  ([CONFIG, "--config.camera.fov_deg=(40.,50.)"], ("config.camera.fov_deg is not a setting",)),
  ([CONFIG, "--config.generator.fourier.decay=-1.0"], ("generator.fourier.decay=-1.0", "from 0 to 4")),
  ([CONFIG, "--config.distillation.perp_neg=threestudio"], ("has no effect on images",))])
def test_mistakes_are_one_line(command, tmp_path, arguments, parts):
  status, _, err = command(*arguments, f"--workdir={tmp_path / 'run'}")
  assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
  assert all(part in err for part in parts), err


def test_render_is_refused_before_anything_is_read(tmp_path):
  task = Image2DTask(settings.validate(settings.defaults("image2d")))
  with pytest.raises(settings.ConfigError, match="--mode=render is for objects"):
    export.render(task, tmp_path, 0.0)
