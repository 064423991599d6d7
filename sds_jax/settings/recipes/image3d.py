"""Published recipes of image-to-3D, and the settings of a few words: `zero123`, `magic123,FOLDER`.

The published settings are those of threestudio's configurations, as far as this package has a setting for them. The
exceptions: field, renders and optimizer are those of the recipe `threestudio_sd`; the background is white, where
Zero-1-to-3's is learnt; the photo's own view is in every step; the depth loss is left out where no map is given, and
compares by correlation; smoothness concerns the photo's view alone, and normals in [-1, 1], not [0, 1], so that its
weights are a quarter of the published; Stable-Zero123's batches stay at 12.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sds_jax.priors import sources
from sds_jax.schema import ConfigError
from sds_jax.settings.recipes import text3d
from sds_jax.settings.recipes.words import split, take_generator, use_generator
from sds_jax.settings.trees import defaults

_ZERO123: dict[str, Any] = {
    "prior.dtype": "bfloat16", "picture.elevation_deg": 0.0, "background.name": "white",
    "distillation.sds.guidance_scale": 3.0, "camera.distance": (3.8, 3.8), "camera.fov_deg": (20.0, 20.0),
    "training.steps": 10_000, "training.views": 1, "optimizer.learning_rate": 1e-2,
}
"""The settings for any weights of Zero-1-to-3: cameras at one distance with a long lens, an object on white."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "zero123": _ZERO123 | {
        "camera.elevation_deg": (-10.0, 60.0), "camera.distance": (3.2, 3.2), "training.views": 2, "loss.sds": 0.003,
        "loss.rgb": 200.0, "loss.mask": 50.0, "loss.opacity": 2.0, "loss.entropy": 0.5,
        "loss.orientation": ((0.0, 1.0), (0.5, 20.0))},
    "stable-zero123": _ZERO123 | {
        "camera.elevation_deg": (-10.0, 80.0), "training.steps": 600, "loss.sds": 0.1,
        "picture.elevation_deg": 5.0, "training.views": 12,
        "loss.rgb": ((0.0, 500.0), (0.167, 500.0), (0.667, 1000.0)), "loss.mask": 50.0, "loss.opacity": 0.5,
        "loss.entropy": 0.5, "loss.orientation": 1.0,
        "loss.smoothness": ((0.0, 1.75), (0.167, 1.75), (0.25, 1.25), (0.333, 2.5)),
        "distillation.sds.t_min": ((0.0, 0.7), (0.083, 0.7), (0.333, 0.3)),
        "distillation.sds.t_max": ((0.0, 0.98), (0.083, 0.98), (0.333, 0.8))},
    "magic123": _ZERO123 | {
        "camera.elevation_deg": (-45.0, 45.0), "camera.distance": (2.5, 2.5), "camera.fov_deg": (40.0, 40.0),
        "words.prior": "sd15", "words.guidance_scale": 100.0,
        "loss.sds": 40.0, "loss.words": 1.0, "loss.rgb": 1e4, "loss.mask": 1e3,
        "distillation.sds.guidance_scale": 5.0, "distillation.sds.t_min": 0.2, "distillation.sds.t_max": 0.6},
}
"""Recipe -> settings by dotted name."""

PRIORS = {"zero123": "zero123", "stable-zero123": "stable-zero123", "magic123": "zero123-xl"}
"""Recipe -> the prior that the recipe is run with where none is named."""


def from_words(words: str) -> ConfigDict:
  """Returns the settings of a recipe, a prior, or both with a comma in between; and of a generator of the user's own.

  Args:
    words: "zero123", say, or "magic123,FOLDER": a recipe of PUBLISHED first; a prior is "shapeworld-views", a name of
      `sources.HUB_IDS`, a hub id ("owner/name") or a folder. A prior alone is run by the nearest recipe. Besides, in
      any place, package.module:function.

  Raises:
    ConfigError: a word is none of these, or there are too many.
  """
  generator, others = take_generator(words)
  given = split(others) or [sources.SHIPPED_VIEWS]
  recipe = given.pop(0) if given[0] in PUBLISHED else None
  prior = given.pop(0) if given else PRIORS[recipe]
  if given or prior in PUBLISHED.keys() - sources.HUB_IDS.keys() or not sources.is_name(prior):
    published = ", ".join(sources.published_names(pictures=True))
    raise ConfigError(f"{words!r} is not a recipe ({', '.join(PUBLISHED)}), a prior ({sources.SHIPPED_VIEWS}, "
                      f"{published}, a hub id 'owner/name' or a folder), or both in this order")
  config = defaults("image3d")
  config.update_from_flattened_dict({**_of_recipe(recipe, prior), "prior.name": prior})
  if generator:
    use_generator(config, generator)
  return config


def _of_recipe(recipe: str | None, prior: str) -> dict[str, Any]:
  """Returns the settings of a recipe for a prior, by dotted name; None: of the recipe that is nearest to the prior."""
  if sources.is_small(prior):
    settings = PUBLISHED[recipe] if recipe else {}
    return {name: value for name, value in settings.items() if name.startswith(("loss.", "distillation."))}
  borrowed = {name: value for name, value in text3d.RECIPES["threestudio_sd"].settings.items()
              if name.startswith(("field.", "render.", "occupancy.", "optimizer.", "export."))}
  nearest = "stable-zero123" if sources.is_stable_zero123(Path(prior).name) else "zero123"
  return borrowed | PUBLISHED[recipe or nearest]
