"""The conditions of the prior, embedded once for a run.

Each view has a prompt, and a camera where the prior knows cameras.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from sds_jax.diffusion.estimators import find, options_of
from sds_jax.diffusion.estimators.base import NEEDS
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.priors.prior import Prior, check_words
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.training import view_conditions
from sds_jax.types import Array, Camera, Params
from sds_jax.views import perp_neg_weights, prompts

Text: TypeAlias = dict[str, Any]
"""Name -> embedded prompts, a tree of arrays as `Prior.embed` returns it; see `embed`."""

SPREAD = ("views", "target", "source")
"""Names that have several prompts, such as one for each direction of view."""


def texts(prior: Prior, distillation: DistillationSettings, negative_prompt: str, prompt: str,
          spread: Callable[[str], list[str]]) -> dict[str, list[str]]:
  """Returns all prompts of a run by name.

  Names in SPREAD have several prompts, all others one.

  The published words about quality mean nothing to a prior with a small vocabulary. Where the prior does not know one
  of the words, the empty (or negative) prompt replaces the text, and for the target the prompt itself; `substitutions`
  names the replacements.

  Args:
    prior: the prior.
    distillation: settings with the estimator and its options.
    negative_prompt: prompt of the unconditional side.
    prompt: the prompt.
    spread: prompt -> prompts, such as one for each direction of view.

  Returns:
    `views` and `null`, and by the needs of the estimator `negative`; `target` and `source`; or `source`.
  """
  record, known = find(distillation.estimator), lambda text: _knows(prior, text)
  options = options_of(distillation, record)
  by_name = dict(views=spread(prompt), null=[negative_prompt])
  # As many as views, because both sides of a pair need equal shapes.
  empty = [negative_prompt] * len(by_name["views"])
  if "negative" in record.needs:
    by_name["negative"] = [options.negative_prompt if known(options.negative_prompt) else negative_prompt]
  if "pair" in record.needs:
    target, source = prompt + options.target_words, prompt + options.source_words
    by_name["target"] = spread(target if known(target) else prompt)
    by_name["source"] = spread(source) if source and known(source) else empty
  if "source" in record.needs:
    by_name["source"] = spread(distillation.source_prompt) if distillation.source_prompt else empty
  return by_name


def user_texts(distillation: DistillationSettings, negative_prompt: str) -> dict[str, str]:
  """Returns the texts that the user gives beside the prompt, by setting.

  The prior must know all words of these texts.
  """
  record = find(distillation.estimator)
  by_setting = {"negative_prompt": negative_prompt}
  if "source" in record.needs:
    by_setting["distillation.source_prompt"] = distillation.source_prompt
  for name, text in _option_texts(distillation):
    if text != getattr(record.options(), name):
      by_setting[f"distillation.{record.name}.{name}"] = text
  return by_setting


def substitutions(prior: Prior, distillation: DistillationSettings, negative_prompt: str) -> str:
  """Returns a line for the log with the texts that `texts` replaces.

  The line is "" where the prior knows all words.
  """
  negative = f"config.negative_prompt={negative_prompt!r}"
  by_option = dict(negative_prompt=negative, target_words="nothing", source_words=negative)
  replaced = [f"{by_option[name]} replaces {name}" for name, text in _option_texts(distillation)
              if not _knows(prior, text)]
  return (f"{distillation.estimator}: this prior does not know the words about quality: {' and '.join(replaced)}"
          if replaced else "")


def _option_texts(distillation: DistillationSettings) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of the estimator's options that are prompts or parts of prompts."""
  record = find(distillation.estimator)
  options = options_of(distillation, record)
  for need in sorted(record.needs):
    for name in NEEDS[need].options:
      if isinstance(getattr(options, name), str):
        yield name, getattr(options, name)


def _knows(prior: Prior, text: str) -> bool:
  try:
    check_words([text], prior.vocabulary)
  except ValueError:
    return False
  return True


def embed(prior: Prior, by_name: dict[str, list[str]]) -> Text:
  """Returns the prompts of `texts`, embedded.

  Leaves are [V, ...] where the name is one of SPREAD, else [...].
  """
  # A single batch, because another batch size would compile the text encoder anew.
  embedded = prior.embed([prompt for some in by_name.values() for prompt in some])
  text, first = {}, 0  # first: number of the first prompt of each name in the one batch above
  for name, some in by_name.items():
    last = first + len(some)
    text[name] = jax.tree.map(lambda leaf, a=first, b=last, n=name: leaf[a:b] if n in SPREAD else leaf[a], embedded)
    first = last
  return text


def embed_prompts(prior: Prior, distillation: DistillationSettings, negative_prompt: str, prompt: str) -> Text:
  """Returns the embedded prompts of an object.

  `views` [V, ...] and `null` [...] are always there, others by the needs of the estimator.

  V is the number of `prompts.VIEWS`, or 1 where view_words is "none".

  Args:
    prior: the prior.
    distillation: settings with the estimator and view_words.
    negative_prompt: prompt of the unconditional side.
    prompt: of the object.
  """
  spread = prompts.view_prompts if distillation.view_words != "none" else lambda prompt: [prompt]
  return embed(prior, texts(prior, distillation, negative_prompt, prompt, spread))


def sides(distillation: DistillationSettings, text: Text, choose: Callable[[Array], Array], known: dict[str, Array],
          progress: Array) -> dict[str, Any]:
  """Returns the condition of a guided denoiser for B images.

  The sides are `cond` and `uncond`, and `negative` for an estimator that needs one.

  Args:
    distillation: settings with the estimator.
    text: of `embed`.
    choose: leaves [V, ...] of embedded prompts -> [B, ...], the prompt of each image.
    known: other conditions of each image, equal on every side: guidance strengthens the prompt, not the viewpoint.
    progress: fraction of the run that is done, [] float32.
  """
  record = find(distillation.estimator)
  chosen = jax.tree.map(choose, text["views"])
  every = lambda one: jax.tree.map(lambda a, b: jnp.broadcast_to(a[None], b.shape), one, chosen)  # noqa: E731
  null = every(text["null"])
  if "pair" in record.needs:
    # `progress` is traced, so both pairs are in the program, and one compilation serves the whole run.
    replaced = progress >= options_of(distillation, record).begins
    either = lambda new, old: jax.tree.map(lambda a, b: jnp.where(replaced, choose(a), b), new, old)  # noqa: E731
    chosen, null = either(text["target"], chosen), either(text["source"], null)
  cond = dict(cond={**chosen, **known}, uncond={**null, **known})
  if "negative" in text:
    cond["negative"] = {**every(text["negative"]), **known}
  return cond


def of_views(prior: Prior, params: Params, distillation: DistillationSettings, conditions: Any, cams: Camera,
             azimuth: Array, elevation: Array, progress: Array) -> dict[str, Any]:
  """Returns the condition of a guided denoiser for the views of an object.

  For prompts the condition is that of `sides`: the prompt is that of the view's direction, the camera is added where
  the prior knows cameras, and the sides of Perp-Neg where Perp-Neg is on. For a photo the condition is that of
  `view_conditions.of_views`.

  Args:
    prior: the prior.
    params: of the prior.
    distillation: settings with the estimator, view words and Perp-Neg.
    conditions: of `embed_prompts`; or, for a photo, those of `view_conditions.of_views`.
    cams, azimuth, elevation: of the views, leaves [B, ...].
    progress: fraction of the run that is done, [] float32.
  """
  if prior.photo:
    return view_conditions.of_views(prior, params, distillation, conditions, azimuth, elevation)
  known = dict(camera=prior.camera_features(cams)) if prior.camera_dim else {}
  choose = lambda some: _by_direction(some, azimuth, elevation, distillation.view_words)  # noqa: E731
  cond = sides(distillation, conditions, choose, known, progress)
  if distillation.perp_neg != "none":
    scale = schedule_value(distillation.perp_neg_scale, progress)
    cond |= perp_neg_sides(cond, conditions, azimuth, elevation, distillation.perp_neg, scale)
  return cond


def _by_direction(some: Array, azimuth: Array, elevation: Array, view_words: str) -> Array:
  """Returns the prompt [B, ...] of each view.

  `some` has one prompt for each direction.
  """
  if view_words == "none":
    return jnp.broadcast_to(some[:1], (azimuth.shape[0],) + some.shape[1:])
  if view_words == "nearest":
    return some[prompts.view_index(azimuth, elevation)]
  # The embedded prompts may be bfloat16, and strict promotion refuses mixed types.
  weights = prompts.view_weights(azimuth, elevation).astype(some.dtype)
  return jnp.einsum("bv,v...->b...", weights, some)


def perp_neg_sides(cond: dict[str, dict[str, Any]], text: Text, azimuth: Array, elevation: Array, variant: str,
                   scale: Array) -> dict[str, Any]:
  """Returns `cond`, `negatives` and `weights` of Perp-Neg.

  Args:
    cond: of `sides`.
    text: of `embed_prompts`, with one prompt for each of `prompts.VIEWS`.
    azimuth, elevation: of the views, [B], radians.
    variant: a name in `perp_neg_weights.VARIANTS`.
    scale: [], multiplies the weights.
  """
  mix, weights = perp_neg_weights.VARIANTS[variant](azimuth, elevation)
  # The positive prompt lies between two directions of view, as embeddings.
  chosen = jax.tree.map(lambda leaf: jnp.einsum("bv,v...->b...", mix.astype(leaf.dtype), leaf), text["views"])

  def side(some: Any) -> dict[str, Any]:
    return {**cond["cond"], **jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), some, chosen)}

  negatives = tuple(side(jax.tree.map(lambda leaf, v=view: leaf[v][None], text["views"]))
                    for view in perp_neg_weights.NEGATIVES)
  return dict(cond=side(chosen), negatives=negatives, weights=scale * weights)
