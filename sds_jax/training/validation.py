"""All of a config is checked here, before anything is loaded: one message a mistake, naming field, value and remedy."""
from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
from ml_collections import ConfigDict

from sds_jax.diffusion import guidance, timesteps, weightings
from sds_jax.fields import background, field
from sds_jax.priors import published, sources
from sds_jax.training import (
    choices, config as config_lib, defaults, distil, estimator_checks, image2d_validation, image3d_validation)
from sds_jax.training.checks import (
    Check, ConfigError, above, finite, number, one_of, scalar, scalar_values, span, whole)
from sds_jax.views import perp_neg_weights


_FOLDERS = ("workdir", "prior.path", "words.path", "distillation.source")
"""Settings that name folders: what need not be text on every file system."""


def validate(config: ConfigDict) -> ml_collections.FrozenConfigDict:
  """Check every field and every relation between fields.

  Returns:
    A frozen copy of `config`.

  Raises:
    ConfigError: the first mistake that was found.
  """
  reference = defaults.of(config)
  _check_names_and_types(config, reference, reference)
  _check_values(config, estimator_checks.checks())  # first, since what is left open may be filled with these
  if config.distillation.estimator in distil.NAMES:  # otherwise the checks below say what is wrong
    config = choices.resolve(config)
  _check_values(config, _checks(config.job))
  relations = {"text3d": _text_relations, "image2d": image2d_validation.relations,
               "image3d": _image_relations}[config.job]
  for problem in itertools.chain(_run_relations(config), estimator_checks.relations(config), relations(config)):
    raise ConfigError(problem)
  return config_lib.freeze(config)


def _check_values(config: ConfigDict, checks: dict[str, Check]) -> None:
  for path, (legal, words) in checks.items():
    value = _get(config, path)
    try:
      ok = legal(value)
    except (TypeError, ValueError, OverflowError):  # a tuple with a string inside, say, or 10**400
      ok = False
    if not ok:
      raise ConfigError(f"config.{path}={value!r} is not legal: it must be {words}")


def wrong_kind(job: str, takes_pictures: bool) -> str:
  """Why a prior of this kind does not do for the job, to follow its name; "" where it does."""
  if takes_pictures == (job == "image3d"):
    return ""
  return ("is told a picture: use configs/image.py instead, or a prior that is told words" if takes_pictures else
          "is told words: use configs/image.py:shapeworld-views, or another prior that is told a picture, instead")


def check_name(path: str, reference: ConfigDict) -> None:
  """Raise ConfigError unless the dotted `path` is a setting of `reference`, naming the nearest one that is."""
  group, prefix = reference, ""
  for name in path.split("."):
    if not isinstance(group, ConfigDict) or name not in group:
      known = sorted(group) if isinstance(group, ConfigDict) else []
      near = difflib.get_close_matches(name, known, n=1)
      hint = (f"did you mean config.{prefix}{near[0]}?" if near else
              f"known here: {', '.join(known)}" if known else f"config.{prefix.rstrip('.')} has no settings inside")
      raise ConfigError(f"config.{path} is not a setting; {hint}")
    group, prefix = group[name], f"{prefix}{name}."


def _check_names_and_types(config: ConfigDict, reference: ConfigDict, root: ConfigDict, prefix: str = "") -> None:
  for name in config:
    path = prefix + name
    check_name(path, root)
    value, default = config[name], reference[name]
    if isinstance(default, ConfigDict):
      if not isinstance(value, ConfigDict):
        raise ConfigError(f"config.{path}={value!r} is not legal: it must be a group of settings, "
                          f"config.{path}.{next(iter(default))} and so on")
      _check_names_and_types(value, default, root, path + ".")
    elif not _same_type(value, default):
      raise ConfigError(f"config.{path}={value!r} is of type {type(value).__name__}: it must be of type "
                        f"{type(default).__name__}, such as {default!r}")
    elif isinstance(value, str) and path not in _FOLDERS and not _is_text(value):
      raise ConfigError(f"config.{path}={value!r} is not legal: it must be text, and it holds half a character (a lone "
                        "surrogate); type it again, or set the terminal to UTF-8")
  for name in reference:
    if name not in config:
      raise ConfigError(f"config.{prefix}{name} is missing; start from sds_jax.training.config.default()")


def _is_text(value: str) -> bool:
  try:
    value.encode()
  except UnicodeEncodeError:
    return False
  return True


def _same_type(value: Any, default: Any) -> bool:
  if isinstance(default, float):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if isinstance(default, int) and not isinstance(default, bool):
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, type(default))


def _get(config: ConfigDict, path: str) -> Any:
  for name in path.split("."):
    config = config[name]
  return config


def _milestones(spec: tuple) -> bool:
  places = [p for p, _ in spec]
  return (all(finite(p) and 0.0 < p < 1.0 for p in places) and all(a < b for a, b in zip(places, places[1:]))
          and all(type(size) is int and 8 <= size <= 1024 for _, size in spec))


def _checks(job: str) -> dict[str, Check]:
  """Dotted name -> check, for all settings of a job."""
  own = {"text3d": _scene_checks, "image2d": image2d_validation.checks,
         "image3d": lambda: {**_scene_checks(), **image3d_validation.checks()}}[job]
  return {**_run_checks(), **own()}


def _run_checks() -> dict[str, Check]:
  """Of what every job has."""
  return {
      "prompt": (lambda v: bool(v.strip()) and len(v) <= 10_000, "a sentence of 1 to 10,000 characters"),
      "negative_prompt": (lambda v: len(v) <= 10_000, "a text of at most 10,000 characters (empty: none)"),
      "seed": whole(0, 2**31 - 1),
      "resume": one_of(("auto", "must", "never")),
      "prior.dtype": one_of(("float32", "bfloat16")),
      "distillation.estimator": one_of(distil.NAMES),
      "distillation.weighting": one_of(weightings.WEIGHTINGS),
      "distillation.guidance_convention": one_of(guidance.CONVENTIONS),
      "distillation.guidance_scale": scalar(-1000.0, 1000.0),
      "distillation.guidance_rescale": scalar(0.0, 1.0),
      "distillation.perp_neg": one_of(("none", *perp_neg_weights.VARIANTS)),
      "distillation.perp_neg_scale": scalar(0.0, 100.0),
      "distillation.t_min": scalar(0.0, 1.0),
      "distillation.t_max": scalar(0.0, 1.0),
      "distillation.t_warp": one_of((*timesteps.WARPS, "dreamtime")),
      "distillation.t_sampler": one_of(timesteps.SAMPLERS),
      "distillation.latent_until": (lambda v: finite(v) and 0.0 <= v < 1.0, "a fraction of the run from 0 to below 1, "
                                    "since no colours are learnt before it"),
      "distillation.clip_norm": scalar(0.0, words=", never 0 unless it is (0.0,): no clipping"),
      "distillation.view_words": one_of(("nearest", "blended", "none")),
      "loss.sds": scalar(0.0),
      "optimizer.name": one_of(("adam", "adan", "adamw", "sgd")),
      "optimizer.learning_rate": above(0.0),
      "optimizer.warmup_steps": whole(0),
      "optimizer.final_fraction": number(0.0, 1.0),
      "optimizer.b1": number(0.0, 0.9999),
      "optimizer.b2": number(0.0, 0.99999),
      "optimizer.eps": above(0.0),
      "optimizer.ema_decay": (lambda v: finite(v) and 0.0 <= v < 1.0, "a number from 0 (none) to below 1"),
      "optimizer.background_factor": number(0.0, 100.0),
      "optimizer.clip_norm": number(0.0, math.inf, " (0: no clipping)"),
      "training.steps": whole(1, config_lib.MAX_STEPS - 1),
      "training.views": whole(1, 4096),
      "training.log_every": whole(1),
      "training.render_every": whole(0, words=" (0: never)"),
      "training.checkpoint_every": whole(1),
      "training.keep_checkpoints": whole(1),
      "training.keep_period": whole(0, words=" (0: none is kept for good)"),
      "divergence.patience": whole(1),
      "divergence.restarts": whole(0, 100, " (0: give up at once)"),
      "divergence.learning_rate_factor": (lambda v: finite(v) and 0.0 < v <= 1.0, "a number above 0, up to 1"),
      "parallel.devices": whole(0, words=" (0: all there are)"),
      "parallel.mode": one_of(("jit", "pmap")),
      "parallel.together": whole(-1, words=" (0: all, -1: chosen by the backend)"),
  }


def _scene_checks() -> dict[str, Check]:
  """Of the jobs that make an object: what is optimised, how it is rendered, what is left."""
  texture = "; lower it if memory is short"
  return {
      "loss.orientation": scalar(0.0),
      "loss.opacity": scalar(0.0),
      "loss.entropy": scalar(0.0),
      "training.guidance_every": whole(0, words=" (0: never)"),
      "training.particles": whole(1, 4096),
      "occupancy.resolution": (lambda v: 4 <= v <= 256 and v % 2 == 0, "an even number from 4 to 256"),
      "occupancy.every": whole(0, words=" (0: no occupancy grid)"),
      "occupancy.decay": number(0.0, 1.0),
      "occupancy.start_step": whole(0),
      "export.mesh_resolution": whole(16, 1024),
      "export.mesh_threshold": number(0.0, math.inf, " (0: chosen automatically)"),
      "export.image_size": whole(16, 4096),
      "export.num_samples": whole(4, 4096),
      "export.turntable_frames": whole(2, 10_000),
      "export.turntable_elevation_deg": number(-89.0, 89.0),
      "camera.elevation_deg": span(-90.0, 90.0),
      "camera.distance": span(1.0, 100.0),
      "camera.fov_deg": span(5.0, 150.0),
      "camera.focal": (lambda v: tuple(v) == (0.0, 0.0) or span(0.1, 20.0)[0](v),
                       "(0.0, 0.0): fov_deg counts, or " + span(0.1, 20.0)[1]),
      "camera.position_jitter": number(0.0, 1.0),
      "camera.target_std": number(0.0, 1.0),
      "camera.up_std": number(0.0, 1.0),
      "shading.albedo_until": number(0.0, 1.0),
      "shading.lambertian": number(0.0, 1.0),
      "shading.textureless": number(0.0, 1.0),
      "shading.ambient": number(0.0, 1.0),
      "shading.ambient_spread": number(0.0, 1.0),
      "shading.distance": span(0.01, 100.0),
      "field.name": one_of(field.FIELDS),
      "field.bound": number(0.05, 1.0),
      "field.density": one_of(field.ACTIVATIONS),
      "field.blob": one_of(field.BLOBS),
      "field.blob_scale": number(0.0, 1000.0),
      "field.blob_radius": above(0.0),
      "field.density_bias": number(-100.0, 100.0),
      "field.mlp.hidden": whole(1, 1024),
      "field.mlp.depth": whole(1, 32),
      "field.mlp.num_octaves": whole(1, 16),
      "field.mlp.activation": one_of(("relu", "silu", "softplus")),
      "field.paper_mlp.hidden": whole(1, 1024),
      "field.paper_mlp.blocks": whole(1, 32),
      "field.paper_mlp.num_octaves": whole(1, 16),
      "field.paper_mlp.variance": scalar(0.0, 1.0),
      "field.hashgrid.levels": whole(1, 32),
      "field.hashgrid.features": whole(1, 16),
      "field.hashgrid.coarsest": whole(2, 1024),
      "field.hashgrid.finest": whole(2, 8192),
      "field.hashgrid.log2_table": whole(8, 24),
      "field.hashgrid.hidden": whole(1, 1024),
      "field.hashgrid.depth": whole(0, 32),
      "field.hashgrid.open_levels": scalar(0.0, 32.0),
      "background.name": one_of(background.BACKGROUNDS),
      "background.random_colour": number(0.0, 1.0),
      "background.mlp.hidden": whole(1, 1024),
      "background.mlp.depth": whole(0, 32),
      "background.mlp.num_octaves": whole(1, 16),
      "background.harmonics.degree": whole(1, 4),
      "background.harmonics.hidden": whole(1, 1024),
      "background.harmonics.depth": whole(0, 32),
      "render.height": whole(8, 1024, texture),
      "render.width": whole(8, 1024, texture),
      "render.num_samples": whole(2, 1024, texture),
      "render.candidates": whole(2, 4096, texture),
      "render.block_points": whole(-1, 10**8, " (-1: chosen by the backend, 0: no blocks)"),
      "render.milestones": (_milestones, "(), or ((p, size), ...) with fractions p of the run rising between 0 and 1, "
                            "and whole sizes from 8 to 1024"),
      "render.normals": one_of(("analytic", "difference")),
  }


def _places(spec: tuple) -> list[float]:
  """The fractions of the run at which a legal scheduled scalar bends."""
  return [0.0] if len(spec) == 1 else [p for p, _ in spec]


def _at(spec: tuple, place: float) -> float:
  """A legal scheduled scalar at a fraction of the run."""
  return spec[0] if len(spec) == 1 else float(np.interp(place, *zip(*spec)))


def _run_relations(config: ConfigDict) -> Iterator[str]:
  """What only two fields together can get wrong, in any job."""
  d, p = config.distillation, config.prior
  if p.random_weights and (p.path or p.name not in published.PRIORS):
    yield (f"config.prior.random_weights={p.random_weights!r} needs the name of a published prior, not config.prior."
           f"{'path' if p.path else 'name'}={p.path or p.name!r}: set config.prior.name to one of "
           f"{', '.join(published.PRIORS)}, or random_weights to False")
  pictured = None if p.path else sources.takes_pictures(p.name)  # before anything is fetched
  if pictured is not None and wrong_kind(config.job, pictured):
    yield f"config.prior.name={p.name!r} {wrong_kind(config.job, pictured)}"
  if d.t_min != d.t_max and any(_at(d.t_min, p) >= _at(d.t_max, p) for p in (*_places(d.t_min), *_places(d.t_max))):
    yield (f"config.distillation.t_min={d.t_min!r} reaches config.distillation.t_max={d.t_max!r}: t_min must stay "
           "below t_max during the whole run; exchange or separate them, or make them equal for a t without randomness")
  if d.clip_norm != (0.0,) and min(scalar_values(d.clip_norm)) == 0.0:
    yield (f"config.distillation.clip_norm={d.clip_norm!r} reaches 0, where nothing would be learnt: keep it above 0, "
           "or give (0.0,) for no clipping at all")
  if config.parallel.shard_prior and config.parallel.mode == "pmap":
    yield ("config.parallel.shard_prior=True takes config.parallel.mode='jit', where arrays know how they lie on the "
           "devices: set mode to jit, or shard_prior to False")
  if config.parallel.shard_prior and config.training.get("guidance_every", 0):
    yield (f"config.training.guidance_every={config.training.guidance_every} looks at the whole prior on one device, "
           "but config.parallel.shard_prior=True: set one of them to 0 or False")
  if config.optimizer.warmup_steps >= config.training.steps and config.optimizer.warmup_steps > 0:
    yield (f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} must be less than config.training.steps="
           f"{config.training.steps}")


def _many_scenes(config: ConfigDict) -> Iterator[str]:
  """What does not go with a file of prompts."""
  for path, only in (("training.guidance_every", 0), ("parallel.mode", "jit"), ("parallel.shard_prior", False),
                     ("distillation.source", ""), ("training.particles", 1)):
    group, name = path.split(".")
    if config[group][name] != only:
      yield (f"config.{path}={config[group][name]!r} is for one object, not for config.prompts_file="
             f"{config.prompts_file!r}: leave it at {only!r}")


def _text_relations(config: ConfigDict) -> Iterator[str]:
  """The same of text-to-3D."""
  d = config.distillation
  if d.perp_neg != "none" and d.view_words == "none":
    yield (f"config.distillation.perp_neg={d.perp_neg!r} tells views apart by their words, but "
           f"config.distillation.view_words={d.view_words!r}: set it to nearest or blended, or perp_neg to none")
  if config.prompts_file:
    yield from _many_scenes(config)
  yield from _scene_relations(config)


def _image_relations(config: ConfigDict) -> Iterator[str]:
  """The same of image-to-3D."""
  yield from image3d_validation.relations(config)
  yield from _scene_relations(config)


def _scene_relations(config: ConfigDict) -> Iterator[str]:
  """The same of every job that renders a field."""
  r = config.render
  if config.training.views % config.training.particles:
    yield (f"config.training.views={config.training.views} is no multiple of config.training.particles="
           f"{config.training.particles}: every object wants as many views of a step; set views to "
           f"{config.training.particles} or a multiple")
  if r.candidates < r.num_samples:
    yield (f"config.render.candidates={r.candidates} is less than config.render.num_samples={r.num_samples}: samples "
           "are chosen among the candidates, so there must be at least as many")
  grid = config.field.hashgrid
  if grid.finest < grid.coarsest:
    yield (f"config.field.hashgrid.finest={grid.finest} is less than config.field.hashgrid.coarsest={grid.coarsest}: "
           "the levels go from coarse to fine; exchange them")
  if grid.open_levels != (0.0,) and (min(scalar_values(grid.open_levels)) < 1
                                     or scalar_values(grid.open_levels)[-1] != grid.levels):
    yield (f"config.field.hashgrid.open_levels={grid.open_levels!r} must stay at 1 or above and end at "
           f"config.field.hashgrid.levels={grid.levels}, since the finished object is shown with all of them; or give "
           "(0.0,): all from the start")
  if config.background.random_colour > 0 and config.background.name not in background.LEARNT:
    yield (f"config.background.random_colour={config.background.random_colour} stands in for a learnt background, but "
           f"config.background.name={config.background.name!r} is not learnt: set it to one of "
           f"{', '.join(background.LEARNT)}, or random_colour to 0")
  if r.height != r.width:
    yield (f"config.render.height={r.height} differs from config.render.width={r.width}: priors see square images; "
           "make them equal")
  if config.shading.lambertian + config.shading.textureless > 1.0 + 1e-9:
    yield (f"config.shading.lambertian={config.shading.lambertian} and config.shading.textureless="
           f"{config.shading.textureless} sum to more than 1: the rest is the probability of plain albedo; lower one")
  if config.shading.ambient + config.shading.ambient_spread > 1.0 + 1e-9:
    yield (f"config.shading.ambient={config.shading.ambient} and config.shading.ambient_spread="
           f"{config.shading.ambient_spread} sum to more than 1: no more light can be ambient than there is; lower one")
  if config.camera.distance[0] <= config.field.bound:
    yield (f"config.camera.distance={config.camera.distance!r} puts cameras inside the object's ball of radius "
           f"config.field.bound={config.field.bound}: the smallest distance must be larger")
