"""What is legal for the settings that only image-to-3D has; `validation.validate` joins it to the rest."""
from __future__ import annotations

from collections.abc import Iterator
import math

from ml_collections import ConfigDict

from sds_jax.priors import sources
from sds_jax.training.checks import Check, finite, number, one_of, scalar

WITHOUT_WORDS = ("sds", "score", "ldiff", "sjc", "rfds", "csd", "nfsd", "vsd", "asd", "ism", "sdi", "cds", "hifa")
"""Estimators that are about one condition and its null; the others compare descriptions."""

_NO_MEANING = {"distillation.perp_neg": "none", "distillation.view_words": "none", "distillation.latent_until": 0.0,
               "distillation.source": "", "training.particles": 1, "negative_prompt": ""}
"""Settings that speak of words, of edits or of several objects, and the one value that they take here."""


def told_elevation(setting: str) -> float | None:
  """`picture.elevation_deg` as a number of degrees; None for "auto".

  Raises:
    ValueError: it is neither.
  """
  return None if setting.strip() == "auto" else float(setting)


def checks() -> dict[str, Check]:
  """Dotted name -> check."""
  from sds_jax.io import photos
  return {
      "image": (lambda v: bool(v.strip()) and "\0" not in v, "the path of a picture"),
      "prompt": (lambda v: len(v) <= 10_000, "a text of at most 10,000 characters (empty: none)"),
      "picture.elevation_deg": (_is_elevation, "auto, or a number of degrees from -89 to 89"),
      "picture.azimuth_deg": number(-360.0, 360.0),
      "picture.framing": one_of(photos.FRAMINGS),
      "picture.background": one_of(photos.BACKGROUND_METHODS),
      "picture.depth_is": one_of(("depth", "disparity")),
      "words.guidance_scale": scalar(-1000.0, 1000.0),
      **{f"loss.{name}": scalar(0.0) for name in ("rgb", "mask", "depth", "normals", "smoothness", "words")},
  }


def _is_elevation(setting: str) -> bool:
  degrees = told_elevation(setting)
  return degrees is None or (finite(degrees) and abs(degrees) <= 89.0)


def relations(config: ConfigDict) -> Iterator[str]:
  """What only two fields together can get wrong."""
  for path, only in _NO_MEANING.items():
    group, _, name = path.rpartition(".")
    value = (config[group] if group else config)[name]
    if value != only:
      yield f"config.{path}={value!r} has no meaning for an object made from a picture: leave it at {only!r}"
  d, c = config.distillation, config.camera
  if d.estimator not in WITHOUT_WORDS:
    yield (f"config.distillation.estimator={d.estimator!r} compares descriptions, and a picture is the only one here: "
           f"set it to one of {', '.join(WITHOUT_WORDS)}")
  for name in ("distance", "fov_deg"):
    if c[name][0] != c[name][1]:
      yield (f"config.camera.{name}={c[name]!r} is a range, but all views are taken as the picture was: give one value "
             f"twice, such as {(c[name][0],) * 2}")
  if any(c.focal):
    yield f"config.camera.focal={c.focal!r} must be (0.0, 0.0): the picture's camera is given by config.camera.fov_deg"
  for name in ("position_jitter", "target_std", "up_std"):
    if c[name]:
      yield (f"config.camera.{name}={c[name]!r} must be 0.0: the prior is told from where a view is taken, not how the "
             "camera shakes there")
  for name in ("depth", "normals"):
    if config.picture[name] and config.loss[name] == (0.0,):
      yield (f"config.picture.{name}={config.picture[name]!r} would go unheard, as config.loss.{name} is (0.0,): give "
             f"its weight, such as --config.loss.{name}='(10.0,)', or leave the map out")
    if config.loss[name] != (0.0,) and not config.picture[name]:
      yield (f"config.loss.{name}={config.loss[name]!r} wants a map of the picture: give its file as "
             f"config.picture.{name}, or set the loss to (0.0,)")
  if bool(config.prompt.strip()) != (config.loss.words != (0.0,)):
    yield (f"config.prompt={config.prompt!r} and config.loss.words={config.loss.words!r} belong together: a second "
           "prior is told the prompt, and the loss is its weight; give both or neither")
  w = config.words
  if config.loss.words != (0.0,) and not w.path and (not sources.is_name(w.prior) or sources.takes_pictures(w.prior)):
    yield (f"config.words.prior={w.prior!r} is no prior that is told words: it must be shapeworld, "
           f"{', '.join(sources.published_names(pictures=False))}, a hub id 'owner/name' or a folder")
  if not math.isclose(config.shading.lambertian + config.shading.textureless, 0.0):
    yield ("config.shading.lambertian and config.shading.textureless must be 0.0: the picture's own light is in the "
           "colours of the object")
