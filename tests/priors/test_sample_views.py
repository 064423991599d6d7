"""Views of a photo by the command: the requested poses, and refusals."""
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sds_jax.priors import photo as photo_lib, prior as prior_lib, sample, sample_views, spaces
from sds_jax.priors.sources import Source
from sds_jax.views import poses


@pytest.fixture
def asked(monkeypatch):
  """Returns {name: value}: the calls of a command to a prior without networks."""
  asked = {}

  @dataclasses.dataclass(frozen=True)
  class PhotoConditioning(photo_lib.PhotoConditioning):
    def conditions(self, params, features, pose):
      return dict(text=features["tokens"][None] + pose[:, None, :1], x=pose[:, None, None, :] * jnp.ones((1, 8, 8, 1)))

  def encode(picture):
    asked["picture"] = np.asarray(picture)
    return dict(tokens=jnp.ones((1, 3)), x=jnp.zeros((8, 8, 4)), elevation=jnp.float32(asked.get("elevation", np.nan)))

  def draw(prior, params, cond, uncond, key, steps, scale):
    jax.debug.callback(lambda pose: asked.update(pose=np.asarray(pose)[:, 0, 0]), cond["x"])
    asked.update(steps=steps, scale=scale, null=uncond.keys() == cond.keys())
    return jnp.zeros((len(cond["x"]), 16, 16, 3))

  def build(name, dtype, **choices):
    scheduler = dict(num_train_timesteps=10, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
    photo = PhotoConditioning(None, 0, "polar", encode) if name == "views" else None
    return prior_lib.make_prior(Source(name, None), spaces.pixel_space(16), None, scheduler, photo=photo), {}

  monkeypatch.setattr(sample, "build", build)
  monkeypatch.setattr(sample_views, "ddim", draw)
  return asked


def write(path, size=(16, 16), mode="RGBA"):
  image = Image.new(mode, size, (200, 100, 0, 0)[:len(mode)])
  image.paste((0, 0, 255, 255)[:len(mode)], (4, 4, 8, 8))
  image.save(path)
  return f"--photo={path}"


def test_views(asked, tmp_path, capsys):
  flags = ["--prior=views", write(tmp_path / "a.png"), f"--out={tmp_path / 'x.png'}", "--steps=3", "--guidance_scale=2"]
  sample.main([*flags, "--azimuth_deg", "30", "-90", "--elevation_deg=40", "--photo_elevation_deg=10"])
  jax.effects_barrier()
  polar = math.radians(80)
  np.testing.assert_allclose(asked["pose"], [[-math.radians(30), math.sin(a), math.cos(a), polar]
                                             for a in map(math.radians, (30, -90))], atol=1e-6)
  assert (asked["steps"], asked["scale"], asked["null"]) == (3, 2.0, True)
  assert np.all(asked["picture"][0, 0] == 1.0) and np.all(asked["picture"][5, 5] == (0, 0, 1))  # on white
  with Image.open(tmp_path / "x.png") as image:
    assert image.size == (32, 16)
  asked["elevation"] = 0.25  # the prior's estimate is the default
  sample.main([*flags, "--num=4"])
  jax.effects_barrier()
  expected = poses.relative_pose(jnp.full(4, 0.25), jnp.arange(4.0) * (jnp.pi / 2), jnp.float32(0.25), jnp.float32(0.0))
  np.testing.assert_allclose(asked["pose"], expected, atol=1e-6)
  del asked["elevation"]
  sample.main([*flags, "--num=1"])
  jax.effects_barrier()
  np.testing.assert_allclose(asked["pose"], [[0, 0, 1, math.pi / 2]], atol=1e-6)
  assert "drawing 1 images in 3 steps" in capsys.readouterr().out


def test_a_photo_without_opacity(tmp_path):
  write(tmp_path / "a.png", mode="RGB")
  picture = sample_views.read_picture(tmp_path / "a.png")
  assert picture.shape == (16, 16, 3) and picture.dtype == jnp.float32
  np.testing.assert_allclose(picture[0, 0], np.array([200, 100, 0]) / 255, rtol=1e-6)


@pytest.mark.parametrize("flags, words", [
  (["--prior=views"], "give either --prompt=TEXT or, for a prior that is conditioned on a photo, --photo=FILE"),
  (["--prior=views", "--picture=a.png", "--prompt=a cube"], "give either --prompt=TEXT or"),
  (["--prior=words", "--picture=a.png"], "the prior 'words' is conditioned on a prompt, not on a photo: give --prompt"),
  (["--prior=views", "--picture=none.png"], "none.png"),
  (["--prior=views", "--picture=text.png"], "text.png"),
  (["--prior=views", "--picture=grey.png"], "grey.png shows no object"),
  (["--prior=views", "--picture=wide.png"], "wide.png has 20x16 pixels, expected a square: crop it, or put the")])
def test_mistakes(asked, tmp_path, monkeypatch, capsys, flags, words):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "a.png")
  write(tmp_path / "wide.png", (20, 16))
  Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "grey.png")
  (tmp_path / "text.png").write_text("no picture")
  with pytest.raises(SystemExit):
    sample.main(flags)
  assert words in capsys.readouterr().err.splitlines()[-1]
