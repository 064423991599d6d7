"""Every setting of image-to-3D, and what has been published for it; `config.py` tells of the groups that all jobs have.

The published settings are those of threestudio's configurations, so far as there is something here that they set. What
is other: field, renders and optimiser are those of the recipe `threestudio_sd`; the background is white, where
Zero-1-to-3's is learnt; the picture's own view is in every step; depth is left out where no map is given, and compared
by correlation; smoothness is of the picture's view alone, and of normals in [-1, 1], not [0, 1], so that its weights
are a quarter of the published; Stable-Zero123's batches stay at 12.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sds_jax.priors import sources
from sds_jax.training import config as config_lib
from sds_jax.training.checks import ConfigError


def default() -> ConfigDict:
  """The settings for the view prior that ships, sized for two CPU cores; a fresh, unlocked ConfigDict."""
  config = config_lib.default()
  config.job = "image3d"
  config.image = "picture.png"  # the picture
  config.prompt = ""  # with loss.words: what is in it, for a second prior that is told words (Magic123)
  del config.prompts_file
  config.picture = ConfigDict(dict(
      elevation_deg="auto",  # from where it was taken, a number; auto: as the prior estimates it
      azimuth_deg=0.0,  # of its camera; 0 is the front of the world
      framing="auto",  # auto, centre or keep: io/photos.py
      background="auto",  # how the object is told from what is behind it: io/photos.py
      # Maps of the same picture, for loss.depth and loss.normals; "": none. Grey: depth, light where it is far
      # ("depth": Omnidata, ZoeDepth) or near ("disparity": MiDaS, Depth Anything). Colours: normals, 255 (n + 1) / 2,
      # where x is to the right, y up, and z towards the camera (OpenGL's). What is transparent is not known.
      depth="", depth_is="depth", normals=""))
  config.prior.name = sources.SHIPPED_VIEWS
  config.words = ConfigDict(dict(  # the prior that is told `prompt`
      prior="shapeworld", path="", guidance_scale=(3.0,)))
  config.loss.update(
      orientation=(0.0,),  # normals of every view are dear, and the picture's losses do without
      rgb=(3000.0,), mask=(300.0,),  # of the picture's view: squared errors of colours and of opacity
      depth=(0.0,),  # 1 - Pearson's correlation with picture.depth
      normals=(0.0,),  # 1 - cosine to picture.normals
      smoothness=(0.0,),  # squared differences of neighbouring normals in the picture's view
      words=(0.0,))  # distillation from the prior that is told words
  config.distillation.view_words = "none"
  config.distillation.sds.update(guidance_scale=(3.0,))
  config.shading.update(lambertian=0.0, albedo_until=1.0)  # the light is in the picture, and stays in the colours
  config.camera.update(distance=(2.7, 2.7), fov_deg=(46.0, 46.0), position_jitter=0.0, target_std=0.0, up_std=0.0)
  config.training.update(steps=600, views=2)
  return config


_ZERO123: dict[str, Any] = {
    "prior.dtype": "bfloat16", "picture.elevation_deg": "0", "background.name": "white",
    "distillation.sds.guidance_scale": (3.0,), "camera.distance": (3.8, 3.8), "camera.fov_deg": (20.0, 20.0),
    "training.steps": 10_000, "training.views": 1, "optimizer.learning_rate": 1e-2,
}
"""What Zero-1-to-3's weights want, whichever: cameras at one distance with a long lens, an object on white."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "zero123": _ZERO123 | {
        "camera.elevation_deg": (-10.0, 60.0), "camera.distance": (3.2, 3.2), "training.views": 2, "loss.sds": (0.003,),
        "loss.rgb": (200.0,), "loss.mask": (50.0,), "loss.opacity": (2.0,), "loss.entropy": (0.5,),
        "loss.orientation": ((0.0, 1.0), (0.5, 20.0))},
    "stable-zero123": _ZERO123 | {
        "camera.elevation_deg": (-10.0, 80.0), "training.steps": 600, "loss.sds": (0.1,),
        "picture.elevation_deg": "5", "training.views": 12,
        "loss.rgb": ((0.0, 500.0), (0.167, 500.0), (0.667, 1000.0)), "loss.mask": (50.0,), "loss.opacity": (0.5,),
        "loss.entropy": (0.5,), "loss.orientation": (1.0,),
        "loss.smoothness": ((0.0, 1.75), (0.167, 1.75), (0.25, 1.25), (0.333, 2.5)),
        "distillation.sds.t_min": ((0.0, 0.7), (0.083, 0.7), (0.333, 0.3)),
        "distillation.sds.t_max": ((0.0, 0.98), (0.083, 0.98), (0.333, 0.8))},
    "magic123": _ZERO123 | {
        "camera.elevation_deg": (-45.0, 45.0), "camera.distance": (2.5, 2.5), "camera.fov_deg": (40.0, 40.0),
        "words.prior": "sd15", "words.guidance_scale": (100.0,),
        "loss.sds": (40.0,), "loss.words": (1.0,), "loss.rgb": (1e4,), "loss.mask": (1e3,),
        "distillation.sds.guidance_scale": (5.0,), "distillation.sds.t_min": (0.2,), "distillation.sds.t_max": (0.6,)},
}
"""Recipe -> settings by dotted name."""

PRIORS = {"zero123": "zero123", "stable-zero123": "stable-zero123", "magic123": "zero123-xl"}
"""Recipe -> the prior that it is run with where none is named."""


def from_words(words: str) -> ConfigDict:
  """The settings that a recipe, a prior, or both with a comma between them stand for.

  Args:
    words: "zero123", say, or "magic123,FOLDER": a recipe of PUBLISHED first; a prior is "shapeworld-views", a name of
      `priors.sources.HUB_IDS`, a hub id ("owner/name") or a folder. A prior alone is run by the recipe that is nearest.

  Raises:
    ConfigError: a word is neither, or there are too many.
  """
  given = [word.strip() for word in words.split(",") if word.strip()] or [sources.SHIPPED_VIEWS]
  recipe = given.pop(0) if given[0] in PUBLISHED else None
  prior = given.pop(0) if given else PRIORS[recipe]
  if given or prior in PUBLISHED.keys() - sources.HUB_IDS.keys() or not sources.is_name(prior):
    published = ", ".join(sources.published_names(pictures=True))
    raise ConfigError(f"{words!r} is not a recipe ({', '.join(PUBLISHED)}), a prior ({sources.SHIPPED_VIEWS}, "
                      f"{published}, a hub id 'owner/name' or a folder), or both in this order")
  config = default()
  if sources.is_small(prior):
    chosen = PUBLISHED[recipe] if recipe else {}
    chosen = {name: value for name, value in chosen.items() if name.startswith(("loss.", "distillation."))}
  else:
    from sds_jax.training import recipes  # which imports the validation that imports this
    borrowed = recipes.RECIPES["threestudio_sd"].settings
    chosen = {name: value for name, value in borrowed.items()
              if name.startswith(("field.", "render.", "occupancy.", "optimizer.", "export."))}
    chosen |= PUBLISHED[recipe or ("stable-zero123" if sources.is_stable_zero123(Path(prior).name) else "zero123")]
  config.update_from_flattened_dict({**chosen, "prior.name": prior})
  return config
