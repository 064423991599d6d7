"""The record of an estimator: function, options, needs and published settings.

A new estimator is one file with one record, and one line in `estimators.ESTIMATORS`:

  >>> def shrunk(denoise_fn, params, schedule, x, t, eps, cond, keys, *, share=1.0):
  ...   z = add_noise(schedule, x, eps, t)
  ...   eps_hat = denoise_fn(params, z, t, cond)
  ...   return eps_hat - share * eps, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))
  >>> @dataclasses.dataclass(frozen=True)
  ... class Options:
  ...   share: Scheduled = setting(((0.0, 1.0), (1.0, 0.0)), scheduled(0.0, 1.0), "share of eps that is subtracted")
  >>> record = Estimator("shrunk", shrunk, options=Options)
  >>> print(record.keywords(Options(), Moment(progress=0.5)))
  {'share': Array(0.5, dtype=float32)}
"""
from __future__ import annotations

import dataclasses
import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp  # noqa: F401 (of the examples)

from sds_jax.diffusion import guidance, timesteps, weightings
from sds_jax.diffusion.parameterizations import x0_from_eps  # noqa: F401 (of the example)
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import add_noise  # noqa: F401 (of the example)
from sds_jax.schema import AUTO, Legal, Scheduled, above, finite, number, one_of, scheduled, setting, whole
from sds_jax.types import Array, Schedule

EstimateFn: TypeAlias = Callable[..., tuple[Array, Mapping[str, Any]]]
"""(denoise_fn, params, schedule, x, t, eps, cond, keys, **arguments) -> (residual, seen); see `estimators`."""


@dataclasses.dataclass(frozen=True)
class Draw:
  """Settings of guidance, weight and the range of t, which every estimator has."""
  weighting: str = setting("sigma2", one_of(weightings.WEIGHTINGS), "weight w(t) of the gradient")
  guidance_convention: str = setting(
      "diffusers", one_of(guidance.CONVENTIONS),
      "diffusers: eps_u + s (eps_c - eps_u); dreamfusion: eps_c + omega (eps_c - eps_u)")
  guidance_scale: Scheduled = setting(3.0, scheduled(-1000.0, 1000.0), "s or omega of the guidance convention")
  t_min: Scheduled = setting(0.02, scheduled(0.0, 1.0), "lower end of t, a fraction of the schedule")
  t_max: Scheduled = setting(0.98, scheduled(0.0, 1.0), "upper end of t, a fraction of the schedule")
  t_warp: str = setting("linear", one_of((*timesteps.WARPS, "dreamtime")),
                        "pace of t_min and t_max over the run; dreamtime: t follows DreamTime within them")


def for_small_prior(draw: Draw, **changes: Any) -> Draw:
  """Returns settings for a small prior, such as the prior that ships: diffusers scale 3, and `changes`.

  Guidance of 100 or so is far too much for a prior that was trained on simple images: scale 3 does there what 100 does
  elsewhere.

  >>> print(for_small_prior(Draw(guidance_scale=100.0), t_min=0.25))
  Draw(weighting='sigma2', guidance_convention='diffusers', guidance_scale=3.0, t_min=0.25, t_max=0.98, t_warp='linear')
  """
  return dataclasses.replace(draw, **{**dict(guidance_convention="diffusers", guidance_scale=3.0), **changes})


LEGAL_START = Legal(lambda v: finite(v) and (v == -1.0 or 0.0 <= v <= 1.0),
                    "a fraction of the schedule from 0 to 1, or -1: chosen by the prediction type of the prior")
"""Legal values of the beginning of an inversion, for `inversion_start`."""


@dataclasses.dataclass(frozen=True)
class NoOptions:
  """The options of an estimator that has none."""


@dataclasses.dataclass(frozen=True)
class SecondNetwork:
  """Settings of the second network, which learns the images made so far: adapters on the prior."""
  rank: int = setting(4, whole(1, 1024), "inner dimension of the adapters")
  learning_rate: float = setting(1e-4, above(0.0), "learning rate of the second network")
  forget_camera: float = setting(0.1, number(0.0, 1.0), "probability that a step trains the network without camera")


class Need(NamedTuple):
  """A thing that an estimator cannot do without.

  Attributes:
    words: name the need in the table of estimators.
    arguments: keywords of the estimator's function, which take their values from `Moment.inputs`.
    options: fields of the estimator's options which the supplier of the need reads, and not the estimator's function.

  >>> print(NEEDS["source"].arguments, NEEDS["negative"].options)
  ('source_x', 'source_cond') ('negative_prompt',)
  """
  words: str
  arguments: tuple[str, ...] = ()
  options: tuple[str, ...] = ()


NEEDS: dict[str, Need] = {
    "uncond": Need("guided denoiser"),
    "negative": Need("negative prompt", options=("negative_prompt",)),
    "pair": Need("descriptions of target and source", options=("target_words", "source_words", "begins")),
    "source": Need("source image", ("source_x", "source_cond")),
    "score": Need("second network, which learns", ("score_fn", "score_params", "score_cond"),
                  tuple(field.name for field in dataclasses.fields(SecondNetwork))),
    "camera": Need("cameras"),
    "image": Need("rendered image and the prior's decoder"),
}
"""Name -> need.

  uncond    the denoiser is one of `guidance.guided`, so that predictions under each condition can be had apart
  negative  cond["negative"], embedded from the option `negative_prompt`
  pair      from the fraction `begins` of the run on, the prompt with `target_words` is the condition, and the prompt
            with `source_words` the unconditional side
  source    an image and its condition, which the run edits (`distillation.source`)
  score     a network eps_phi that learns in the same steps, with the options of `SecondNetwork`
  camera    camera features of the views, as conditions of eps_phi
  image     the image at the prior's size, and the prior's decoder, for `Estimator.term`
"""


@dataclasses.dataclass(frozen=True)
class Moment:
  """The part of a run's state at one step that the arguments of an estimator may depend on.

  Attributes:
    progress: fraction of the run that is done, [] float32 or a Python number.
    seed: of the run.
    t_low: lower end of t at this step, a fraction of the schedule, [].
    guidance_scale: number of the guidance convention at this step, [].
    neutral_scale: number of the guidance convention that stands for no guidance.
    prediction_type: of the prior's network; a name in `schedules.PREDICTION_TYPES`.
    schedule: noise schedule of the prior.
    inputs: the arguments that NEEDS names, and `image` [B, S, S, 3] in [0, 1] at the prior's size S.
    decode: x [B, ...] -> image [B, S, S, 3]; the prior's decoder.

  >>> print(Moment(progress=0.25).now(((0.0, 100.0), (1.0, 50.0))))
  87.5
  """
  progress: Array | float = 0.0
  seed: Array | int = 0
  t_low: Array | float = 0.02
  guidance_scale: Array | float = 7.5
  neutral_scale: float = 1.0
  prediction_type: str = "epsilon"
  schedule: Schedule | None = None
  inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  decode: Callable[[Array], Array] | None = None

  def now(self, value: Scheduled) -> Array:
    """Returns a scheduled number at this step, [] float32."""
    return schedule_value(value, self.progress)


def inversion_start(start: float, moment: Moment) -> float:
  """Returns the fraction of the schedule at which an inversion begins.

  A network that predicts the clean image divides its error by sigma, so that its inversion begins at 0.15.

  Args:
    start: a fraction, or -1 for the choice by the prediction type of the prior.
    moment: a step of the run.

  >>> print(inversion_start(-1.0, Moment()), inversion_start(-1.0, Moment(prediction_type="sample")))
  0.0 0.15
  """
  if start >= 0.0:
    return start
  return 0.15 if moment.prediction_type == "sample" else 0.0


class SecondGradient(NamedTuple):
  """A second gradient of an estimator, at another array than x.

  Attributes:
    at: [B, ...], differentiable in the parameters of the images.
    residual: [B, ...] float32, without gradient.
    weight: [] or [B]; multiplies w(t) and the weight of the loss.

  >>> image = jnp.ones((2, 8, 8, 3))
  >>> print(SecondGradient(image, 0.1 * image, weight=0.01).residual.shape)
  (2, 8, 8, 3)
  """
  at: Array
  residual: Array
  weight: Array | float


@dataclasses.dataclass(frozen=True)
class Estimator:
  """An estimator: a function, and the facts that other modules read of the estimator.

  Attributes:
    name: in settings and tables.
    fn: the estimator itself.
    paper: arXiv id, perhaps with a place in the paper.
    residual: formula of the residual for the table, where e is eps; e_c, e_u, e_n are the predictions under the prompt,
      the empty prompt and a negative prompt; e_g is the guided prediction.
    calls: network calls a step, one a side, in words.
    options: group of settings; a frozen dataclass whose fields are declared by `schema.setting`.
    needs: names of NEEDS.
    published: values of the source for what the settings leave open; None: the values of the group `distillation.sds`.
    small: values with a small prior, such as the prior that ships; None: those of `published`.
    source: where the published values come from.
    guided: whether guidance_scale has an effect.
    arguments: (options, moment) -> keywords of fn, without those of NEEDS. The function must read every option that no
      need reads, at every moment. None: each such option under its own name, scheduled numbers at this moment.
    relations: (distillation settings, path of that group) -> one line for each setting that does not go with this
      estimator.
    term: (options, moment, aux of `score_distillation`) -> a second gradient; may read options that fn does not take.

  Raises:
    ValueError: the fields contradict each other, such as an option that nothing reads.

  >>> Estimator("mine", lambda denoise_fn, params, schedule, x, t, eps, cond, keys: None, needs={"source"})
  Traceback (most recent call last):
    ...
  ValueError: estimator 'mine': its function has no keyword-only argument 'source_cond', which its needs supply
  """
  name: str
  fn: EstimateFn
  paper: str = ""
  residual: str = ""
  calls: str = ""
  options: type = NoOptions
  needs: frozenset[str] = frozenset()
  published: Draw | None = None
  small: Draw | None = None
  source: str = ""
  guided: bool = True
  arguments: Callable[[Any, Moment], dict[str, Any]] | None = None
  relations: Callable[[Any, str], Iterator[str]] | None = None
  term: Callable[[Any, Moment, Any], SecondGradient] | None = None

  def __post_init__(self) -> None:
    # The dataclass is frozen, so its own assignment would raise.
    object.__setattr__(self, "needs", frozenset(self.needs))
    # For `help` and `inspect.signature`: the options of the function, not those of `__call__`.
    signature = inspect.signature(self.fn)
    object.__setattr__(self, "__signature__", signature)
    object.__setattr__(self, "__doc__", f"{self.name}{signature}\n\n{inspect.getdoc(self.fn) or ''}".rstrip())
    for problem in _contradictions(self):
      raise ValueError(f"estimator {self.name!r}: {problem}")

  def __call__(self, *arguments: Any, **keywords: Any) -> tuple[Array, Mapping[str, Any]]:
    """Calls `fn`."""
    return self.fn(*arguments, **keywords)

  def keywords(self, options: Any, moment: Moment) -> dict[str, Any]:
    """Returns the keyword arguments of `fn` at a step of a run.

    Args:
      options: of the type `self.options`.
      moment: the step.

    Raises:
      ValueError: `arguments` does not read an option, or `moment.inputs` lacks one.
    """
    inputs = [name for need in sorted(self.needs) for name in NEEDS[need].arguments]
    if lacking := [name for name in inputs if name not in moment.inputs]:
      raise ValueError(f"estimator {self.name!r} needs the inputs {', '.join(inputs)}; {', '.join(lacking)} lacks")
    recorder = _Recorder(options)
    # With a second term the check waits in `second_term`, since the term may read options that fn does not.
    own = self._own_arguments(recorder, moment)
    if self.term is None:
      self._check_read(recorder)
    return own | {name: moment.inputs[name] for name in inputs}

  def second_term(self, options: Any, moment: Moment, aux: Any) -> SecondGradient | None:
    """Returns the second gradient, or None where the estimator has none.

    Args:
      options, moment: as in `keywords`.
      aux: of `score_distillation` at this step.

    Raises:
      ValueError: neither `fn` nor `term` reads one of the options.
    """
    if self.term is None:
      return None
    recorder = _Recorder(options)
    self._own_arguments(recorder, moment)  # for the record of what is read; XLA removes the values
    term = self.term(recorder, moment, aux)
    self._check_read(recorder)
    return term

  def _own_options(self) -> tuple[str, ...]:
    """Returns the options that no need reads."""
    read = {name for need in self.needs for name in NEEDS[need].options}
    return tuple(field.name for field in dataclasses.fields(self.options) if field.name not in read)

  def _own_arguments(self, options: Any, moment: Moment) -> dict[str, Any]:
    """Returns the keywords of `fn` without those of NEEDS."""
    if self.arguments is not None:
      return self.arguments(options, moment)
    legal = {field.name: field.metadata["legal"] for field in dataclasses.fields(self.options)}
    taken = _keywords(self.fn)
    own = {name: getattr(options, name) for name in self._own_options() if taken is None or name in taken}
    return {name: moment.now(v) if legal[name].scheduled else v for name, v in own.items()}

  def _check_read(self, recorder: _Recorder) -> None:
    if unread := [name for name in self._own_options() if name not in recorder.names]:
      raise ValueError(f"estimator {self.name!r}: nothing reads the option {unread[0]!r}: {_REMEDY}")


class _Recorder:
  """Stands for options, and notes in `names` which of them are read."""

  def __init__(self, options: Any):
    self._options, self.names = options, set()

  def __getattr__(self, name: str) -> Any:
    self.names.add(name)
    return getattr(self._options, name)


_REMEDY = "remove it, or take it as a keyword of fn, in arguments or in term"


def _keywords(fn: EstimateFn) -> set[str] | None:
  """Returns the names of keyword-only parameters; None where the function takes any (**)."""
  parameters = inspect.signature(fn).parameters.values()
  if any(p.kind == p.VAR_KEYWORD for p in parameters):
    return None
  return {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}


def _required(fn: EstimateFn) -> set[str]:
  parameters = inspect.signature(fn).parameters.values()
  return {p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is p.empty}


def _contradictions(record: Estimator) -> Iterator[str]:
  """Yields the contradictions within a record."""
  if not record.name.isidentifier() or keyword.iskeyword(record.name):
    yield "name is not legal: it names a group of settings, so it must be a Python identifier, such as 'my_estimator'"
    return
  if unknown := sorted(record.needs - NEEDS.keys()):
    yield f"needs={unknown[0]!r} is not legal: it must be one of {', '.join(NEEDS)}"
    return
  if not (isinstance(record.options, type) and dataclasses.is_dataclass(record.options)):
    yield f"options={record.options!r} is not legal: it must be a frozen dataclass of schema.setting fields"
    return
  if {"pair", "source"} <= record.needs:
    yield "needs cannot hold both 'pair' and 'source': each supplies the condition of a source; keep one"
  fields = {field.name: field for field in dataclasses.fields(record.options)}
  if bare := [name for name, field in fields.items() if "legal" not in field.metadata]:
    yield f"the option {bare[0]!r} has no range and no meaning: declare it by schema.setting"
  for need in sorted(record.needs):
    if lacking := [name for name in NEEDS[need].options if name not in fields]:
      yield f"needs={need!r} takes the options {', '.join(NEEDS[need].options)}, but {lacking[0]!r} is none of them"
  taken, supplied = _keywords(record.fn), {name for need in record.needs for name in NEEDS[need].arguments}
  if taken is None:
    return
  if refused := sorted(supplied - taken):
    yield f"its function has no keyword-only argument {refused[0]!r}, which its needs supply"
  if record.arguments is None:
    own = set(record._own_options())
    if record.term is None and (unread := sorted(own - taken)):
      yield f"nothing reads the option {unread[0]!r}: {_REMEDY}"
    if lacking := sorted(_required(record.fn) - own - supplied):
      yield (f"nothing supplies the argument {lacking[0]!r} of its function: add an option of this name, give it in "
             "`arguments`, or name the need that supplies it")


def options_of(distillation: Any, record: Estimator) -> Any:
  """Returns the options of an estimator in the settings `distillation`; its defaults where there is no such group.

  >>> print(options_of(None, Estimator("plain", lambda *arguments: None)))
  NoOptions()
  """
  if not dataclasses.fields(record.options):
    return record.options()
  return getattr(distillation, record.name, record.options())


def fill(distillation: Any, record: Estimator, small: bool, photo: bool = False) -> Any:
  """Returns the settings `distillation` with the open ones filled by the estimator's values.

  Args:
    distillation: a frozen dataclass with the fields of `Draw`, each perhaps `schema.AUTO`, and a group `sds`.
    record: the estimator.
    small: whether the prior is a small one, such as the prior that ships.
    photo: whether the condition is a photo. Published scales are for prompts, so the guidance of `sds` stands in.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Distillation(Draw):
  ...   sds: Draw = Draw()
  >>> left_open = Distillation(weighting="uniform", guidance_scale=AUTO)
  >>> record = Estimator("plain", lambda *arguments: None, published=Draw(guidance_scale=100.0))
  >>> print(fill(left_open, record, small=False).guidance_scale, fill(left_open, record, False, True).guidance_scale)
  100.0 3.0
  """
  draw = record.published if not small or record.small is None else record.small
  if draw is None:
    draw = distillation.sds
  elif photo and record.guided:
    draw = dataclasses.replace(draw, guidance_convention=distillation.sds.guidance_convention,
                               guidance_scale=distillation.sds.guidance_scale)
  names = [field.name for field in dataclasses.fields(Draw)]
  return dataclasses.replace(distillation, **{
      name: getattr(draw, name) for name in names if getattr(distillation, name) == AUTO})
