"""Shadows and soft edges of synthetic objects on a plain ground, whose opacity is known."""
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sds_jax.io.photos import read_photo

SIZE = 512
BLUE, RED, BLACK, GREY = (30, 60, 160), (190, 40, 30), (12, 12, 12), (120, 120, 120)
Y, X = np.mgrid[:SIZE, :SIZE] + 0.5


def disc(x=256, y=256, radius=128):
  return np.clip(radius - np.hypot(X - x, Y - y) + 0.5, 0, 1)


def box(x=256, y=256, half=110):
  return np.clip(half - np.maximum(abs(X - x), abs(Y - y)) + 0.5, 0, 1)


def blurred(cover, sigma):
  return ndimage.gaussian_filter(cover, sigma)


def photo(cover, colour, ground=(255, 255, 255), shadow=None, shading=None):
  """An object over a ground that the shadow [H, W] darkens; shading [H, W] multiplies the object's colour."""
  ground = np.array(ground, float) * (1 if shadow is None else 1 - shadow[..., None])
  own = np.array(colour, float) * (1 if shading is None else shading[..., None])
  return np.rint(cover[..., None] * own + (1 - cover[..., None]) * ground).clip(0, 255).astype(np.uint8)


def taken(tmp_path, rgb, ending="png"):
  path = tmp_path / f"x.{ending}"
  Image.fromarray(rgb).save(path, **(dict(quality=92) if ending == "jpg" else {}))
  return read_photo(path, 256, framing="keep")


def area(result, cover):
  return (result.opacity > 0.5).mean() / (cover > 0.5).mean()


def foreign(result, colour):
  """The share of the solid pixels that do not have the object's colour."""
  return (np.abs(result.rgb * 255 - colour).max(-1) > 40)[result.opacity > 0.95].mean()


SHADOWS = {
  "drop": 0.35 * blurred(disc(276, 276), 12), "contact": 0.55 * blurred(disc(), 30),
  "below": 0.45 * blurred((((X - 256) / 150) ** 2 + ((Y - 370) / 30) ** 2 < 1).astype(float), 14),
  "dark": 0.7 * blurred(disc(286, 270), 20)}


@pytest.mark.parametrize("shape, colour", [(disc(), BLUE), (box(), RED), (disc(), BLACK)], ids=["blue", "red", "black"])
@pytest.mark.parametrize("ground", [(255, 255, 255), (205, 210, 200)], ids=["white", "grey ground"])
@pytest.mark.parametrize("shadow", SHADOWS)
def test_smooth_shadows_are_background(tmp_path, capsys, shape, colour, ground, shadow):
  result = taken(tmp_path, photo(shape, colour, ground, SHADOWS[shadow]), "jpg" if shadow == "drop" else "png")
  assert 0.97 < area(result, shape) < 1.05 and foreign(result, colour) < 0.03
  assert "a shadow (" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [disc(), box()], ids=["disc", "box"])
@pytest.mark.parametrize("sigma", [2, 4, 8])
@pytest.mark.parametrize("colour, ground", [(BLUE, (255, 255, 255)), (RED, (40, 60, 40)), (GREY, (255, 255, 255))])
def test_soft_edges_are_soft(tmp_path, shape, sigma, colour, ground):
  soft = blurred(shape, sigma)
  result = taken(tmp_path, photo(soft, colour, ground))
  assert 0.95 < area(result, soft) < 1.05 and foreign(result, colour) < 0.03
  assert np.abs(result.opacity - soft.reshape(256, 2, 256, 2).mean((1, 3))).mean() < 0.012


def test_a_sharp_edge_stays(tmp_path, capsys):
  """Shading, also to a bright rim, is no soft edge and no shadow."""
  shade = 1 - 0.45 * np.hypot(X - 200, Y - 200) / 200
  for shading in (shade, 1.4 - shade, 0.7 + 0.3 * np.sin(X / 9)):
    result = taken(tmp_path, photo(disc(), (200, 150, 90), shading=shading.clip(0.1, 1.2)))
    assert 0.98 < area(result, disc()) < 1.02 and (result.opacity > 0.95).mean() > 0.95 * (disc() > 0.5).mean()
  assert "shadow" not in capsys.readouterr().out


def test_doubt_is_told_and_nothing_is_lost(tmp_path, capsys):
  """A grey thing on white cannot be told from its shadow; a part with a sharp edge is kept, too."""
  statue = photo(disc(), (235, 235, 235), shadow=SHADOWS["below"], shading=1 - 0.5 * np.hypot(X - 220, Y - 200) / 150)
  result = taken(tmp_path, statue)
  said = capsys.readouterr().out
  assert area(result, disc()) > 0.95 and "may be the object's shadow, and is kept; if it is one, give a cut-out" in said
  cast = 0.4 * (box(350, 330, 90) > 0.5)
  result = taken(tmp_path, photo(disc(), BLUE, shadow=cast))
  said = capsys.readouterr().out
  assert area(result, disc()) > 1.1 and "with a sharp edge" in said and said.count("cut-out") == 1


@pytest.mark.parametrize("tint", [(0.85, 0.92, 1.0), (1.0, 0.95, 0.85)], ids=["of the sky", "of a lamp"])
def test_hard_shadows_of_coloured_light_are_told(tmp_path, capsys, tint):
  cast = (disc(300, 300) > 0.5)[..., None]
  rgb = np.where(cast, 0.6 * 255 * np.array(tint), 255.0)
  taken(tmp_path, (disc()[..., None] * BLUE + (1 - disc()[..., None]) * rgb).round().astype(np.uint8))
  assert "is kept; if it is a shadow, give a cut-out: a PNG with a transparent" in capsys.readouterr().out
