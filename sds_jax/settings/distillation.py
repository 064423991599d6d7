"""Settings of score distillation: `distillation`, with one group of options for each registered estimator."""
from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

from sds_jax.diffusion import estimators, timesteps
from sds_jax.schema import (
    AUTO, ConfigError, Scheduled, below, folder, group, one_of, or_auto, scheduled, scheduled_values, sentence, setting,
    switch)
from sds_jax.views import perp_neg_weights

# Range and meaning stand once, in `Draw`; here only the defaults differ.
_DRAW = {field.name: field for field in dataclasses.fields(estimators.Draw)}
_CLIP = scheduled(0.0, words=", never 0 unless it is the constant 0: no clipping")
_NO_COLOUR = ", a fraction of the run, since no colours are learnt before it"


def _left_open(name: str) -> Any:
  """Declares a field of `Draw` whose default is the estimator's own value."""
  metadata = _DRAW[name].metadata
  return setting(AUTO, or_auto(metadata["legal"]), metadata["meaning"])


def scheduled_at(spec: Scheduled, place: float) -> float:
  """Returns a legal scheduled number at a fraction of the run.

  >>> scheduled_at(((0.0, 1.0), (1.0, 0.0)), 0.25), scheduled_at(3.0, 0.5)
  (0.75, 3.0)
  """
  # In plain Python, because the check of settings must not start a device.
  if not isinstance(spec, tuple):
    return spec
  for (p0, v0), (p1, v1) in itertools.pairwise(spec):
    if p0 <= place <= p1:
      return v0 + (v1 - v0) * (place - p0) / (p1 - p0)
  return spec[0][1] if place < spec[0][0] else spec[-1][1]


def _places(spec: Scheduled) -> list[float]:
  return [place for place, _ in spec] if isinstance(spec, tuple) else [0.0]


@dataclasses.dataclass(frozen=True)
class DistillationSettings:
  """How the prior's predictions become a gradient: estimator, guidance, range of t, noise, clipping, view words.

  "auto" stands for the estimator's own value: the published value, another value with the small priors that ship, or,
  if nothing is published, the value in the group `sds`.
  """
  estimator: str = setting("sds", estimators.legal_name(), "estimator of the gradient")
  weighting: str = _left_open("weighting")
  guidance_convention: str = _left_open("guidance_convention")
  guidance_scale: Scheduled | str = _left_open("guidance_scale")
  t_min: Scheduled | str = _left_open("t_min")
  t_max: Scheduled | str = _left_open("t_max")
  t_warp: str = _left_open("t_warp")
  guidance_rescale: Scheduled = setting(
      0.0, scheduled(0.0, 1.0), "rescaling of eps (arXiv:2305.08891, 3.4); 0: off, 1: spread of the conditional eps")
  rescale_space: str = setting(
      "eps", one_of(("eps", "x0")), "what guidance_rescale rescales: eps, or the x0 that follows from it (MVDream)")
  perp_neg: str = setting(
      "none", one_of(("none", *perp_neg_weights.VARIANTS)), "weights of Perp-Neg (arXiv:2304.04968); doubles the calls")
  perp_neg_scale: Scheduled = setting(
      1.0, scheduled(0.0, 100.0), "factor on Perp-Neg's weights; stable-dreamfusion's negative_w is -2 times this")
  latent_until: float = setting(
      0.0, below(0.0, 1.0, _NO_COLOUR), "latent priors: until then normals and opacity are the latent")
  t_sampler: str = setting("stratified", one_of(timesteps.SAMPLERS), "how t is drawn over the views of a step")
  antithetic_noise: bool = setting(False, switch(), "views 2 i and 2 i + 1 get the noise eps and -eps")
  clip_norm: Scheduled = setting(0.0, _CLIP, "largest norm of a view's gradient; 0: no clipping")
  view_words: str = setting(
      "nearest", one_of(("nearest", "blended", "none")), "words for the direction of a view, added to the prompt")
  source: str = setting("", folder(" of a run, or empty"), "run that an estimator with a source edits; empty: this one")
  source_prompt: str = setting("", sentence(), "prompt of the source; empty: that of the run `source`")
  sds: estimators.Draw = group(estimators.Draw)

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions within the group, in which nothing is left open."""
    # Both are linear between these places, so their difference is smallest at one of them.
    places = (*_places(self.t_min), *_places(self.t_max))
    gaps = [scheduled_at(self.t_max, p) - scheduled_at(self.t_min, p) for p in places]
    # Equal ends at one moment, as MVDream's at the start, are a t without randomness there.
    if self.t_min != self.t_max and (min(gaps) < 0.0 or max(gaps) == 0.0):
      yield (f"{path}.t_min={self.t_min!r} exceeds {path}.t_max={self.t_max!r}: t_min must stay below t_max during the "
             "whole run; exchange or separate them, or make them equal for a t without randomness")
    if self.clip_norm != 0.0 and min(scheduled_values(self.clip_norm)) == 0.0:
      yield (f"{path}.clip_norm={self.clip_norm!r} reaches 0, where nothing would be learnt: keep it above 0, or set "
             "it to 0.0 for no clipping at all")
    yield from estimators.problems(self, path)
    if self.source and not self.source_prompt:
      yield (f"{path}.source={self.source!r} is not the folder of a run (it has no config.json): give one, such as "
             f"runs/a-red-cube-0, or describe the source with {path}.source_prompt")


def with_estimators() -> DistillationSettings:
  """Returns the defaults, with a group of options for each estimator registered now."""
  return _with_groups(DistillationSettings(), estimators.ESTIMATORS)


def with_estimator(settings: DistillationSettings, record: estimators.Estimator) -> DistillationSettings:
  """Returns the settings with a group of options for one more estimator.

  An estimator without options needs no group.

  Raises:
    ConfigError: another setting has the estimator's name.
  """
  options = record.options
  present = not dataclasses.fields(options) or isinstance(getattr(settings, record.name, None), options)
  return settings if present else _with_groups(settings, {record.name: record})


def _with_groups(settings: DistillationSettings, records: dict[str, estimators.Estimator]) -> DistillationSettings:
  groups = tuple((name, record.options) for name, record in records.items() if dataclasses.fields(record.options))
  present = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
  for name, _ in groups:
    # The group would replace the setting of that name.
    if name in present:
      raise ConfigError(f"an estimator cannot be named {name!r}: config.distillation.{name} is another setting; rename "
                        "the estimator")
  return _extended(type(settings), groups)(**present)


@functools.lru_cache(maxsize=None)
def _extended(base: type, groups: tuple[tuple[str, type], ...]) -> type:
  """Returns a subclass with more groups.

  The results are cached, so that equal settings are of one class.
  """
  # The docstring is passed on, because the settings reference shows it.
  return dataclasses.make_dataclass("DistillationSettings", [(name, kind, group(kind)) for name, kind in groups],
                                    bases=(base,), frozen=True, namespace={"__doc__": base.__doc__})
