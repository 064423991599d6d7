"""What the command does with an object in each of its modes: one function a mode, (config, folder, start) -> None."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from sds_jax import compilation, hosts
from sds_jax.evaluation import scores as scoring
from sds_jax.io import files, images
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.shapeworld import captions
from sds_jax.training import (
    conditions, layout as layout_lib, outputs, particles, resume, loop, step as step_lib, validation, workspace)
from sds_jax.training.checks import ConfigError
from sds_jax.training.image2d_validation import prompts_of
from sds_jax.training.state import TrainState
from sds_jax.views import prompts

Config = ml_collections.FrozenConfigDict


def train(config: Config, folder: Path, started: float) -> None:
  """Optimise an object and write all outputs into `folder`."""
  compilation.prepare()
  print(f"{config.prompt!r} with seed {config.seed}; everything goes to {folder}")
  layout = layout_lib.make_layout(config, particles.count(config))
  prior, prior_params = hosts.run_on_all(lambda: load_prior(config, layout))
  print_choices(config, prior)
  scene = step_lib.make_scene(config)
  view = outputs.make_view(scene)

  def on_render(state: TrainState, step: int) -> None:
    rows = [outputs.render_row(view, config, one) for _, one in _objects(config, state, folder)]
    images.write_png(np.concatenate(rows), folder / "progress" / f"{step:06d}.png")

  if hosts.is_first():
    (folder / "progress").mkdir(exist_ok=True)
  result = loop.train(config, folder, prior, prior_params, on_render, layout=layout)
  if not hosts.shut_down():
    return
  timings = dict(load_s=result.started - started, **result.timings)
  export_state(scene, result.state, folder, timings, view)
  print(f"done in {time.perf_counter() - started:.0f} s: {folder / 'report.html'}")


def export(config: Config, folder: Path, started: float) -> None:
  """Make all outputs again from the newest checkpoint."""
  scene, state = restore(config, folder)
  export_state(scene, state, folder, stored_timings(folder))
  print(f"done in {time.perf_counter() - started:.0f} s: {folder / 'report.html'}")


def render(config: Config, folder: Path, started: float) -> None:
  """Make only the renders and the turntable again from the newest checkpoint."""
  scene, state = restore(config, folder)
  view = outputs.make_view(scene)
  for place, one in _objects(config, state, folder):
    print(outputs.write_renders(view, config, one, place))
    print(outputs.write_turntable(view, config, one, place))
  print(f"done in {time.perf_counter() - started:.0f} s")


def evaluate(config: Config, folder: Path, started: float) -> None:
  """Score the object of the newest checkpoint against its caption's exact scene; write scores.json and the report.

  Raises:
    ConfigError: the prompt is no ShapeWorld caption, so there is no ground truth.
  """
  try:
    spec = captions.parse(config.prompt)
  except captions.CaptionError as error:
    raise ConfigError(f"--mode=evaluate has no ground truth for config.prompt={config.prompt!r}: {error}") from error
  scene, state = restore(config, folder)
  for place, one in _objects(config, state, folder):
    scores = scoring.score(scene, one, spec)
    files.write_json(scores, place / "scores.json")
    if place != folder:
      print(f"{place}: silhouette IoU {scores['silhouette_iou']:.3f}")
  scores = files.read_json(folder / "scores.json")
  export_state(scene, state, folder, stored_timings(folder))
  print_scores(scores)
  print(f"done in {time.perf_counter() - started:.0f} s: {folder / 'scores.json'}")


def print_scores(scores: dict[str, Any]) -> None:
  """A line for each."""
  print("\n".join(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}"
                  for name, value in scores.items()))


def load_prior(config: Config, layout: layout_lib.Layout | None = None,
               said: Sequence[str] = ()) -> tuple[prior_lib.Prior, Any]:
  """`open_prior`, and the parameters where the layout wants them (None: on the first device)."""
  prior, weights = open_prior(config, said)
  return prior, load_weights(weights, layout)


def load_weights(weights: prior_lib.Weights, layout: layout_lib.Layout | None = None) -> Any:
  """A prior's parameters where the layout wants them (None: on the first device)."""
  return weights.load(layout.put_prior if layout else jax.device_put)


def open_prior(config: Config, said: Sequence[str] = (), group: str = "prior") -> tuple[prior_lib.Prior, Any]:
  """The prior of the settings, and its `Weights`, unread; it is checked that it knows the words that it is told.

  Args:
    said: the prompts, in place of `config.prompt`.
    group: of the settings that name it, for errors: "prior", or "words" where it is an object's second prior.

  Raises:
    ConfigError: it does not, and `prior.allow_unknown_words` is off, or it does not do for this job.
    CheckpointError: its files are missing or damaged.
  """
  p = config.prior
  named = f"config.{group}.{'path' if p.path else _NAMES[group]}={p.path or p.name!r}"
  try:
    prior, weights = prior_lib.open_prior(p.path or p.name, p.dtype, p.allow_unknown_words, p.vae_remat,
                                          p.random_weights)
  except CheckpointError:
    raise
  except ValueError as error:  # networks that are not supported
    raise ConfigError(f"{named}: {error}") from error
  if problem := validation.wrong_kind(config.job, bool(prior.sight)):
    raise ConfigError(f"{named} {problem}")
  if config.distillation.latent_until > 0.0 and prior.x_shape[-1] != 4:
    raise ConfigError(f"config.distillation.latent_until={config.distillation.latent_until} makes latents of four "
                      f"channels, but {named} diffuses {prior.x_shape[-1]}; set it to 0.0, or take a prior of latents")
  if prior.vocabulary is not None and not p.allow_unknown_words:
    for prompt in said or (prompts_of(config.prompt) if config.job == "image2d" else [config.prompt]):
      _check_prompt(config, prompt, prior.vocabulary, f"{prompt!r} in config.prompts_file" if said else "", group)
    for setting, words in conditions.own_words(config).items():
      try:
        prior_lib.check_words([words], prior.vocabulary)
      except ValueError as error:
        raise ConfigError(f"config.{setting}={words!r} is beyond this prior: {error}") from error
  return prior, weights


_NAMES = {"prior": "name", "words": "prior"}
"""Group of settings -> the one in it that names a prior."""


def print_choices(config: Config, prior: prior_lib.Prior) -> None:
  """Tell what a run is about to work with: the prior, and what was chosen where the settings left it open."""
  d = config.distillation
  print(f"prior: {prior.source}")
  guided = "" if d.estimator == "csd" else f"guidance_scale={d.guidance_scale} ({d.guidance_convention}), "
  print(f"estimator: {d.estimator}, {guided}weighting={d.weighting}, t from {d.t_min} to {d.t_max}")
  if note := conditions.stand_in(prior, config):
    print(note)


def _check_prompt(config: Config, prompt: str, vocabulary: frozenset[str], named: str, group: str) -> None:
  larger = ("--config.words.prior=sd15" if group == "words" else
            "configs/image2d.py:fourier,sd15" if config.job == "image2d" else "configs/text.py:sd15")
  remedy = (f"For anything else use a larger prior ({larger} or --config.{group}.path=FOLDER), or "
            "go on regardless with --config.prior.allow_unknown_words=True")
  try:
    if vocabulary >= captions.WORDS:
      if captions.parse(prompt).view and config.job != "image2d":
        raise ValueError("the view words are added for each camera, so the prompt must have none")
    else:
      prior_lib.check_words([prompt], vocabulary)
      if config.distillation.view_words != "none":
        remedy = "Say --config.distillation.view_words=none"
        prior_lib.check_words(prompts.view_prompts(prompt), vocabulary)
  except ValueError as error:
    raise ConfigError(f"{named or f'config.prompt={prompt!r}'} is beyond this prior: {error}. {remedy}") from error


def restore(config: Config, folder: Path) -> tuple[step_lib.Scene, TrainState]:
  """The functions and the newest checkpoint of a run."""
  scene = step_lib.make_scene(config)
  return scene, newest(config, folder, lambda key: step_lib.new_state(scene, key))


def newest(config: Config, folder: Path, new_state: Callable[[jax.Array], TrainState]) -> TrainState:
  """The newest checkpoint of a run whose state begins as `new_state` (key) does.

  Raises:
    WorkdirError: there is none.
    ResumeError: it holds something else.
  """
  compilation.prepare()
  like = jax.jit(new_state)(jax.random.key(0))
  with Checkpoints(folder / "checkpoints", config.training.keep_checkpoints) as checkpoints:
    found = resume.newest(checkpoints, like, folder, whatever_estimator=True)
    if found is None:
      raise workspace.WorkdirError(f"{folder / 'checkpoints'} holds no checkpoint; run --mode=train first")
    print(f"from the checkpoint of step {found[0]} in {folder}")
    return found[1]


def _objects(config: Config, state: TrainState, folder: Path) -> Iterator[tuple[Path, TrainState]]:
  """Each object of a run with its folder: the run's own for the first, particle_1/ and so on in it for the others."""
  for number in range(particles.count(config)):
    place = folder / f"particle_{number}" if number else folder
    place.mkdir(exist_ok=True)
    yield place, particles.pick(config, state, number)


def export_state(scene: step_lib.Scene, state: TrainState, folder: Path, timings: dict[str, float],
                 view: outputs.ViewFn | None = None, beside: Path | None = None) -> None:
  """Write all outputs of a state into `folder`.

  Args:
    view: of `outputs.make_view`; made here where it is None.
    beside: an image of what the object was made from beside the object, for the page.
  """
  print("writing renders, turntable, mesh and report ...", flush=True)
  view, before = view or outputs.make_view(scene), timings
  for place, one in _objects(scene.config, state, folder):
    scores = files.read_json(place / "scores.json") or None
    timings = outputs.write_outputs(scene, view, one, place, before, scores, beside)
    files.write_json(timings, place / "timings.json")


def stored_timings(folder: Path) -> dict[str, float]:
  """Of timings.json; {} where there is none."""
  return files.read_json(folder / "timings.json")

