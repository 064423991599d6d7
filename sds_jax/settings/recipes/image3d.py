"""Published recipes of image-to-3D, and the settings of a few words: `zero123`, `magic123,FOLDER`.

The published settings are those of threestudio's last configurations (commit 28d9d80, December 2024), as far as this
package has a setting for them. The exceptions:

- Field, renders and optimizer are those of the recipe `threestudio_sd`.
- The background is white, where half of threestudio's views have a random colour.
- The photo's own view is in every step.
- The depth loss is left out where no map is given, and compares by correlation.
- Smoothness concerns the photo's view alone (Magic123: the other view). Normals are in [-1, 1], not [0, 1], so that
  its weight is a quarter of the published one. The smoothness of normals in space is left out.
- Batches and image sizes stay at the first of three stages: 12 views of 64x64 pixels.
- Magic123's mask is compared by squared error, not by cross-entropy.
- threestudio reads the averaged weights of Zero-1-to-3 (EMA), which `prior.variant=fp16_ema` selects in
  `bennyguo/zero123-xl-diffusers`; without the setting a folder's plain weights are read.

Before July 2023 threestudio's `zero123` was another recipe (10,000 steps, sds 0.003, rgb 200, distance 3.2), and its
`magic123` had no smoothness.
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

_QUICK: dict[str, Any] = {
    "camera.elevation_deg": (-10.0, 80.0), "picture.elevation_deg": 5.0, "training.steps": 600, "training.views": 12,
    "loss.sds": 0.1, "loss.mask": 50.0, "loss.orientation": 1.0,
}
"""The settings that threestudio's `zero123` and `stable-zero123` share."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "zero123": _ZERO123 | _QUICK | {
        "loss.rgb": 500.0, "loss.opacity": 0.1, "loss.entropy": 0.1, "loss.smoothness": 2.0,
        "distillation.sds.t_min": ((0.0, 0.4), (0.333, 0.2)), "distillation.sds.t_max": ((0.0, 0.85), (0.333, 0.5))},
    "stable-zero123": _ZERO123 | _QUICK | {
        # Fractions of 600 steps: in threestudio these change between the steps 50, 100, 150, 200 and 400.
        "loss.rgb": ((0.0, 500.0), (0.167, 500.0), (0.667, 1000.0)), "loss.opacity": 0.5, "loss.entropy": 0.5,
        "loss.smoothness": ((0.0, 1.75), (0.167, 1.75), (0.25, 1.25), (0.333, 2.5)),
        "distillation.sds.t_min": ((0.0, 0.7), (0.083, 0.7), (0.333, 0.3)),
        "distillation.sds.t_max": ((0.0, 0.98), (0.083, 0.98), (0.333, 0.8))},
    "magic123": _ZERO123 | {
        "camera.elevation_deg": (-45.0, 45.0), "camera.distance": (2.5, 2.5), "camera.fov_deg": (40.0, 40.0),
        "words.prior": "sd15", "words.guidance_scale": 100.0,
        "loss.sds": 1.0, "loss.words": 0.025, "loss.rgb": 1000.0, "loss.mask": 100.0, "loss.smoothness": 250.0,
        "distillation.sds.guidance_scale": 5.0, "distillation.sds.t_min": 0.2, "distillation.sds.t_max": 0.6},
}
"""Recipe -> settings by dotted name."""

PRIORS = {"zero123": "zero123-xl", "stable-zero123": "stable-zero123", "magic123": "zero123"}
"""Recipe -> the prior that the recipe is run with where none is named."""


def from_words(words: str) -> ConfigDict:
  """Returns the settings of a few words: a recipe, a prior, or both.

  A generator of the user's own may stand among the words.

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
  """Returns the settings of a recipe for a prior, by dotted name.

  For None the recipe is the nearest to the prior.
  """
  if sources.is_small(prior):
    # The small prior knows its own cameras and image size only.
    settings = PUBLISHED[recipe] if recipe else {}
    return {name: value for name, value in settings.items() if name.startswith(("loss.", "distillation."))}
  borrowed = {name: value for name, value in text3d.RECIPES["threestudio_sd"].settings.items()
              if name.startswith(("field.", "render.", "occupancy.", "optimizer.", "export."))}
  nearest = "stable-zero123" if sources.is_stable_zero123(Path(prior).name) else "zero123"
  return borrowed | PUBLISHED[recipe or nearest]
