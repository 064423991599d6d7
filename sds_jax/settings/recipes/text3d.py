"""Published recipes of text-to-3D, and the settings of a few words: `dreamfusion`, `threestudio_sd,sd15`.

A recipe sets what its source sets. The exceptions follow. For all recipes: the field fills a ball; a ray has
`num_samples` samples on average, chosen among `candidates` places, in occupied cells; view words are the nearest of
front, side, back (quadrants) and overhead (above 60 degrees); losses are means over all pixels.

**dreamfusion** (arXiv:2209.14988). Imagen is not public, so DeepFloyd IF replaces Imagen, under the paper's guidance of
100 (others run IF at 20: `--config.distillation.guidance_scale=20`). The MLP, its integrated encoding and the annealed
blur are the paper's, but a ray has one set of 64 samples, where mip-NeRF 360 has proposals and 256. The sphere of
radius 1.4 becomes a ball of radius 0.95, since cameras must stand outside the ball (the paper, too, takes a smaller
sphere for single objects, and does not give the radius). Adam replaces Distributed Shampoo, with the paper's learning
rates and with Adam's own momenta. The numbers 0.2 and 0.02 of the cameras are read as standard deviations, as in public
code. The weight of the opacity loss is the lower end of the paper's range. The sizes of the background's MLP are ours.

**threestudio_sd**, **threestudio_if** (threestudio's `dreamfusion-sd` and `dreamfusion-if`). A ball of radius 1
replaces a cube of half-width 2; 64 samples of 256 replace up to 512; IF has sigmoid colours, too; the orientation loss
is a mean over all pixels, not over the pixels that hit something. In half of the views the background is one random
colour: an option of threestudio, and we have not checked that both recipes turn this option on.

With **`sdxl`** the settings are those of `threestudio_sd`: a public guidance class for threestudio has for this model
the same guidance of 100, range of t and weighting, at 1024x1024, with both sizes those of the images and no crop. No
results of that class are published, so the scale is its authors' default and not a measured choice.

**dreamfusionacc**. One MLP gives density and colour, and does not see the direction of view; 64 samples of 300 (the
spacing is equal); lights stand around the camera, not around the pole; view words are ours (DreamFusionAcc's front is 0
to 60 degrees, and a sixth view is bottom); the occupancy grid is updated in quarters, with the threshold of all our
fields. The entropy loss is left out: DreamFusionAcc computes the loss and never adds it. We have not checked that all
light which is not ambient is diffuse there.

**mvdream** (MVDream, arXiv:2308.16512; threestudio-mvdream's `mvdream-sd21-shading`). Groups of four views, 90 degrees
apart with one elevation, distance, field of view, background and t. The x0-reconstruction loss is the weight
sigma / alpha (`weightings.sigma_over_alpha`), with the guided x0 rescaled by its deviation over the four views. There a
step has eight views of 64 px in the first half of the run and four of 256 px in the second; here the number of views is
fixed at four. AdamW's rate is 0.01 for the grid and 0.001 for networks and background; here 0.01 for the field and a
tenth of it for the background. As in `threestudio_sd`, 64 samples of 256 replace 512, and the orientation loss is a
mean over all pixels.

**With the prior `shapeworld`** a recipe keeps its field, density, blob, losses and their weights, shading and lights,
optimizer and form of guidance. The small prior and two CPU cores carry no more, so these change: cameras and background
(as the prior knows them), radius of the ball, guidance (3, as eps_u + 3 (eps_c - eps_u)), image size, samples,
occupancy grid, levels and rows of the hash grid, width and blocks of the paper's MLP, steps (400; the learning rate of
the paper grows by as much as its 15,000 steps shrink), views of a step (two, opposite, with stratified t), and what is
written.
"""
from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sds_jax.priors import sources
from sds_jax.priors.loading.files import read_json
from sds_jax.schema import ConfigError
from sds_jax.settings.recipes.words import split, take_generator, use_generator
from sds_jax.settings.trees import defaults

Settings = dict[str, Any]
"""Dotted name -> value."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The settings of a publication.

  Attributes:
    prior: the publication's own prior, or the nearest that can be had.
    settings: for any prior.
    small: over these, with the prior that ships with the package.
    pixels: over these, with DeepFloyd IF.
  """
  prior: str
  settings: Settings
  small: Settings
  pixels: Settings = dataclasses.field(default_factory=dict)


_PUBLISHED: Settings = {
    "prompt": "a DSLR photo of a hamburger",
    "prior.dtype": "bfloat16",
    "distillation.estimator": "sds", "distillation.sds.weighting": "sigma2", "distillation.sds.t_min": 0.02,
    "distillation.sds.t_max": 0.98, "distillation.guidance_rescale": 0.0, "distillation.perp_neg": "none",
    "distillation.clip_norm": 0.0, "distillation.view_words": "nearest", "distillation.t_sampler": "uniform",
    "camera.stratified": False,
    "shading.distance": (0.8, 1.5), "shading.ambient": 0.1, "shading.ambient_spread": 0.0,
    "render.height": 64, "render.width": 64, "render.num_samples": 64, "render.candidates": 256,
    "render.normals": "analytic",
    "loss.sds": 1.0, "loss.entropy": 0.0,
    "optimizer.name": "adam", "optimizer.b1": 0.9, "optimizer.b2": 0.99, "optimizer.eps": 1e-15,
    "optimizer.clip_norm": 0.0,
    "training.log_every": 50, "training.render_every": 500, "training.checkpoint_every": 1000,
    # instant-ngp's updates: every 16 steps, decay 0.95, and all cells during the first 256 steps.
    "occupancy.resolution": 32, "occupancy.every": 16, "occupancy.decay": 0.95, "occupancy.start_step": 256,
    "export.mesh_resolution": 256, "export.image_size": 256, "export.turntable_frames": 96, "export.num_samples": 128,
}
"""The settings that all recipes have in common."""

_SMALL_GROUPS = ("prompt", "prior", "camera", "background", "render", "occupancy", "export")
"""Groups that keep the package's defaults with the prior that ships."""

_SMALL: Settings = {
    "distillation.t_sampler": "stratified",
    "field.bound": 0.8,
    "optimizer.background_factor": 1.0,
    "training.steps": 400, "training.views": 2, "training.log_every": 10, "training.render_every": 100,
    "training.checkpoint_every": 100,
}

_SMALL_GRID: Settings = {
    "field.hashgrid.levels": 8, "field.hashgrid.coarsest": 8, "field.hashgrid.finest": 128,
    "field.hashgrid.log2_table": 14,
}

_DREAMFUSION: Settings = {
    **_PUBLISHED,
    "distillation.sds.guidance_convention": "dreamfusion", "distillation.sds.guidance_scale": 100.0,
    "camera.elevation_deg": (-10.0, 90.0), "camera.distance": (1.0, 1.5), "camera.focal": (0.7, 1.35),
    "camera.fov_deg": (40.6, 71.1), "camera.position_jitter": 0.1, "camera.target_std": 0.2, "camera.up_std": 0.02,
    # The paper's 1,000 of 15,000 steps; blur and orientation loss below change over its first 5,000.
    "shading.albedo_until": 1 / 15, "shading.lambertian": 0.375, "shading.textureless": 0.375,
    "field.name": "paper_mlp", "field.bound": 0.95, "field.density": "exp", "field.blob": "gaussian",
    "field.blob_scale": 5.0, "field.blob_radius": 0.2, "field.density_bias": 0.0,
    "field.paper_mlp.hidden": 128, "field.paper_mlp.blocks": 5, "field.paper_mlp.num_octaves": 8,
    "field.paper_mlp.variance": ((0.0, 5e-2), (1 / 3, 2e-3)),
    "background.name": "mlp",
    "loss.orientation": ((0.0, 1e-4), (1 / 3, 1e-2)), "loss.opacity": 1e-3,
    # Up to 1e-4 in 3,000 steps, then down to 1e-6, as in the paper.
    "optimizer.learning_rate": 1e-4, "optimizer.warmup_steps": 3000,
    "optimizer.final_fraction": 1e-2,
    "training.steps": 15_000, "training.views": 4,
}

_THREESTUDIO: Settings = {
    **_PUBLISHED,
    "distillation.sds.guidance_convention": "dreamfusion", "distillation.sds.guidance_scale": 100.0,
    "camera.elevation_deg": (-10.0, 45.0), "camera.distance": (1.5, 2.0), "camera.fov_deg": (40.0, 70.0),
    "camera.position_jitter": 0.1, "camera.target_std": 0.2, "camera.up_std": 0.02,
    "shading.albedo_until": 0.2, "shading.lambertian": 0.375, "shading.textureless": 0.375,
    "field.name": "hashgrid", "field.bound": 1.0, "field.density": "softplus", "field.blob": "linear",
    "field.blob_scale": 10.0, "field.blob_radius": 0.5, "field.density_bias": 0.0,
    "field.hashgrid.levels": 16, "field.hashgrid.features": 2, "field.hashgrid.coarsest": 16,
    # threestudio's growth of 1.4473 a level gives the same: 16 x 1.4473^15 = 4096.
    "field.hashgrid.finest": 4096, "field.hashgrid.log2_table": 19, "field.hashgrid.hidden": 64,
    "field.hashgrid.depth": 1,
    "field.hashgrid.open_levels": ((0.2, 8.0), (0.6, 16.0)),  # from step 2,000 on one more each 500 steps
    "background.name": "harmonics", "background.random_colour": 0.5, "background.harmonics.degree": 3,
    "background.harmonics.hidden": 16, "background.harmonics.depth": 2,
    # threestudio: from 10 to 1,000 over the first 5,000 of 10,000 steps.
    "loss.orientation": ((0.0, 10.0), (0.5, 1000.0)), "loss.opacity": 1.0,
    "optimizer.learning_rate": 1e-2, "optimizer.warmup_steps": 0,
    "optimizer.final_fraction": 1.0, "optimizer.background_factor": 0.1,
    "training.steps": 10_000, "training.views": 1,
}

_THREESTUDIO_IF: Settings = {
    **_THREESTUDIO, "distillation.sds.guidance_scale": 20.0, "camera.elevation_deg": (-10.0, 90.0)}

_THREESTUDIO_SMALL: Settings = {
    **_SMALL, **_SMALL_GRID, "distillation.sds.guidance_scale": 2.0,
    "field.hashgrid.open_levels": ((0.2, 4.0), (0.6, 8.0)),
}

_MVDREAM: Settings = {
    **_PUBLISHED,
    "negative_prompt": "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and "
                       "unclear, cropped, lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn "
                       "face, deformed, dehydrated, bad proportions",
    "distillation.sds.weighting": "sigma_over_alpha", "distillation.sds.guidance_convention": "diffusers",
    "distillation.sds.guidance_scale": 50.0, "distillation.guidance_rescale": 0.5, "distillation.rescale_space": "x0",
    "distillation.sds.t_min": ((0.0, 0.98), (0.8, 0.02)), "distillation.sds.t_max": ((0.0, 0.98), (0.8, 0.5)),
    "distillation.view_words": "none",
    "camera.group": 4, "camera.elevation_deg": (0.0, 30.0), "camera.distance": (0.8, 1.0), "camera.relative": True,
    "camera.fov_deg": (15.0, 60.0), "camera.position_jitter": 0.0, "camera.target_std": 0.0, "camera.up_std": 0.0,
    "shading.albedo_until": 0.5, "shading.lambertian": 0.5, "shading.textureless": 0.5, "shading.ambient": 0.0,
    "shading.ambient_spread": 1.0,
    "field.name": "hashgrid", "field.bound": 1.0, "field.density": "softplus", "field.blob": "linear",
    "field.blob_scale": 10.0, "field.blob_radius": 0.5, "field.density_bias": 0.0,
    "field.hashgrid.levels": 16, "field.hashgrid.features": 2, "field.hashgrid.coarsest": 16,
    "field.hashgrid.finest": 4096, "field.hashgrid.log2_table": 19, "field.hashgrid.hidden": 64,
    "field.hashgrid.depth": 1,
    "background.name": "harmonics", "background.random_colour": 0.5, "background.harmonics.degree": 3,
    "background.harmonics.hidden": 16, "background.harmonics.depth": 2,
    "render.milestones": ((0.5, 256),),
    "loss.orientation": ((0.0, 10.0), (0.5, 1000.0)), "loss.opacity": 0.0,
    "optimizer.name": "adamw", "optimizer.learning_rate": 1e-2, "optimizer.warmup_steps": 0,
    "optimizer.final_fraction": 1.0, "optimizer.background_factor": 0.1,
    "training.steps": 10_000, "training.views": 4,
}

_DREAMFUSIONACC: Settings = {
    **_PUBLISHED,
    "distillation.sds.guidance_convention": "diffusers", "distillation.sds.guidance_scale": 100.0,
    "camera.elevation_deg": (-30.0, 90.0), "camera.distance": (1.2, 2.0), "camera.focal": (0.7, 1.35),
    "camera.fov_deg": (40.6, 71.1), "camera.position_jitter": 0.0, "camera.target_std": 0.0, "camera.up_std": 0.0,
    "shading.albedo_until": 0.2, "shading.lambertian": 0.75, "shading.textureless": 0.125,
    "shading.ambient_spread": 0.9,
    "field.name": "hashgrid", "field.bound": 1.0, "field.density": "softplus", "field.blob": "linear",
    "field.blob_scale": 10.0, "field.blob_radius": 0.5, "field.density_bias": -1.0,
    "field.hashgrid.levels": 16, "field.hashgrid.features": 2, "field.hashgrid.coarsest": 16,
    "field.hashgrid.finest": 4096, "field.hashgrid.log2_table": 19, "field.hashgrid.hidden": 32,
    "field.hashgrid.depth": 1,
    "background.name": "harmonics", "background.harmonics.degree": 4, "background.harmonics.hidden": 16,
    "background.harmonics.depth": 1,
    "render.height": 256, "render.width": 256, "render.num_samples": 64, "render.candidates": 300,
    "loss.orientation": 1e-2, "loss.opacity": 0.0,
    "optimizer.learning_rate": 1e-2, "optimizer.warmup_steps": 0,
    "optimizer.final_fraction": 1.0, "optimizer.background_factor": 0.1,
    "occupancy.resolution": 128, "occupancy.every": 10, "occupancy.decay": 0.6, "occupancy.start_step": 0,
    "training.steps": 10_000, "training.views": 1,
}

RECIPES: dict[str, Recipe] = {
    "dreamfusion": Recipe("if", _DREAMFUSION, {
        **_SMALL, "distillation.sds.guidance_scale": 2.0, "field.paper_mlp.hidden": 64, "field.paper_mlp.blocks": 2,
        # 1e-4 times 15,000 / 400 steps, and a warm-up of the same fifth of the run.
        "render.height": 40, "render.width": 40, "optimizer.learning_rate": 3.75e-3, "optimizer.warmup_steps": 80}),
    "dreamfusionacc": Recipe("sd21-base", _DREAMFUSIONACC, {
        **_SMALL, **_SMALL_GRID, "distillation.sds.guidance_scale": 3.0},
        # threestudio, too, runs DeepFloyd IF at 20.
        pixels={"distillation.sds.guidance_scale": 20.0}),
    # The negative prompt is of words that the small priors don't know.
    "mvdream": Recipe("mvdream", _MVDREAM, {
        **_SMALL, **_SMALL_GRID, "negative_prompt": "", "distillation.sds.guidance_scale": 3.0, "training.views": 4}),
    "threestudio_sd": Recipe("sd21-base", _THREESTUDIO, _THREESTUDIO_SMALL),
    "threestudio_if": Recipe("if-xl", _THREESTUDIO_IF, _THREESTUDIO_SMALL),
}


def from_words(words: str) -> ConfigDict:
  """Returns the settings of a few words: a recipe, a prior, and a user's own generator.

  There is at most one of each.

  Without a prior a recipe takes its own. Without a recipe a published prior is run as threestudio runs its kind
  (`mvdream` for one that looks at several views together). The
  prior that ships, which "" stands for as well, is run with the package's defaults.

  Args:
    words: names of RECIPES; "shapeworld", a name of `sources.HUB_IDS`, a hub id ("owner/name") or a folder;
      package.module:function.

  Raises:
    ConfigError: a word is none of these, or there are two of a kind.
  """
  generator, others = take_generator(words)
  given = split(others)
  chosen = [word for word in given if word in RECIPES]
  priors = [word for word in given if word not in RECIPES]
  for word in priors:
    if not sources.is_name(word):  # whether the prior is conditioned on text is checked by `settings.validate`
      raise ConfigError(f"{word!r} is neither a recipe ({', '.join(RECIPES)}) nor a prior (shapeworld, "
                        f"{', '.join(sources.published_names(pictures=False))}, a hub id 'owner/name' or a folder)")
  for kind, some in (("recipe", chosen), ("prior", priors)):
    if len(some) > 1:
      raise ConfigError(f"{words!r} names more than one {kind} ({', '.join(some)}): keep one")
  prior = priors[0] if priors else RECIPES[chosen[0]].prior if chosen else "shapeworld"
  # The package's defaults are for the small prior and two CPU cores.
  if not chosen and not sources.is_small(prior):
    chosen = ["mvdream" if sources.views_of(prior) > 1 else "threestudio_if" if _of_pixels(prior) else "threestudio_sd"]
  config = defaults("text3d")
  for name in chosen:
    _apply(config, RECIPES[name], prior)
  config.prior.name = prior
  # A prior that looks at several views together needs as many in every step.
  if config.training.views % sources.views_of(prior):
    config.training.views = sources.views_of(prior)
  if generator:
    use_generator(config, generator)
  return config


def _apply(config: ConfigDict, recipe: Recipe, prior: str) -> None:
  """Puts the settings of a recipe that are meant for this prior into the defaults."""
  if sources.is_small(prior):
    # The prior that ships knows only its own cameras, backgrounds and image size.
    kept = {name: value for name, value in recipe.settings.items() if name.split(".")[0] not in _SMALL_GROUPS}
    config.update_from_flattened_dict({**kept, **recipe.small})
  else:
    config.update_from_flattened_dict({**recipe.settings, **(recipe.pixels if _of_pixels(prior) else {})})


def _of_pixels(prior: str) -> bool:
  """Returns whether a prior is a DeepFloyd IF.

  The folder's model_index.json tells, or else the prior's name.
  """
  index = Path(os.path.expanduser(prior)) / "model_index.json"
  if index.is_file():
    return read_json(index).get("_class_name") == "IFPipeline"
  # Only the name is known before anything is fetched: if, if-xl, DeepFloyd/IF-I-XL-v1.0.
  return re.match(r"(.*/)?if(-|$)", prior.lower()) is not None
