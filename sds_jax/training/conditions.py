"""What the prior is told: the texts of a run, embedded once; and of each view, a text and perhaps its camera."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_collections

from sds_jax.diffusion.scalars import schedule_value
from sds_jax.priors.prior import Prior, check_words
from sds_jax.training import config as config_lib, estimator_state, view_conditions
from sds_jax.training.config import scalar_spec
from sds_jax.types import Array, Camera, Params
from sds_jax.views import cameras, perp_neg_weights, prompts

Text = dict[str, Array]


def texts(prior: Prior, config: ml_collections.FrozenConfigDict, prompt: str,
          spread: Callable[[str], list[str]]) -> dict[str, list[str]]:
  """All that is said in a run: name -> sentences, several where the name is one of SPREAD, else one.

  The published words about quality mean nothing to a prior that knows a few words only: where one is unknown the empty
  (or negative) prompt stands in, and the prompt itself for the bridge's target; `stand_in` says so.

  Args:
    spread: prompt -> sentences: one for each view of an object, say.
  """
  d, negative = config.distillation, config.negative_prompt
  said = dict(views=spread(prompt), null=[negative])
  nothing = [negative] * len(said["views"])
  if d.estimator in ("csd", "nfsd"):
    said["negative"] = [_if_known(prior, d[d.estimator].negative_prompt, negative)]
  elif d.estimator == "bridge":
    target = _if_known(prior, prompt + d.bridge.target_words, prompt)
    source = _if_known(prior, prompt + d.bridge.source_words, "")
    said |= dict(target=spread(target), source=spread(source) if source else nothing)
  elif d.estimator in estimator_state.EDITS:
    said["source"] = spread(d.source_prompt) if d.source_prompt else nothing
  return said


_QUALITY = {"csd": ("negative_prompt",), "nfsd": ("negative_prompt",), "bridge": ("target_words", "source_words")}
"""Estimator -> those of its own settings that are words."""


def own_words(config: ml_collections.FrozenConfigDict) -> dict[str, str]:
  """What the user says beside the prompt, by the setting that says it: the prior must know all of these words."""
  d = config.distillation
  said = {"negative_prompt": config.negative_prompt}
  if d.estimator in estimator_state.EDITS:
    said["distillation.source_prompt"] = d.source_prompt
  published = config_lib.default().distillation
  for name in _QUALITY.get(d.estimator, ()):
    if d[d.estimator][name] != published[d.estimator][name]:
      said[f"distillation.{d.estimator}.{name}"] = d[d.estimator][name]
  return said


def stand_in(prior: Prior, config: ml_collections.FrozenConfigDict) -> str:
  """One line where the prior does not know an estimator's published words, so that something stands in; else ""."""
  name = config.distillation.estimator
  negative = f"config.negative_prompt={config.negative_prompt!r}"
  instead = dict(negative_prompt=negative, target_words="nothing", source_words=negative)
  told = [f"{instead[setting]} stands for {setting}" for setting in _QUALITY.get(name, ())
          if not _known(prior, config.distillation[name][setting])]
  return f"{name}: this prior does not know its words about quality: {' and '.join(told)}" if told else ""


def _known(prior: Prior, words: str) -> bool:
  try:
    check_words([words], prior.vocabulary)
  except ValueError:
    return False
  return True


def _if_known(prior: Prior, words: str, otherwise: str) -> str:
  return words if _known(prior, words) else otherwise


SPREAD = ("views", "target", "source")


def embed(prior: Prior, said: dict[str, list[str]]) -> Text:
  """What `texts` gives, embedded: [V, T, D] where the name is one of SPREAD, else [T, D]."""
  embedded = prior.embed([sentence for sentences in said.values() for sentence in sentences])
  found, first = {}, 0
  for name, sentences in said.items():
    group = embedded[first:first + len(sentences)]
    found[name] = group if name in SPREAD else group[0]
    first += len(sentences)
  return found


def embed_prompts(prior: Prior, config: ml_collections.FrozenConfigDict, prompt: str | None = None) -> Text:
  """The texts of an object, embedded: {"views": [V, T, D] (one for each of `prompts.VIEWS`), "null": [T, D], ...}.

  "null" is `config.negative_prompt`, "" where there is none. Some estimators have more (`texts`). `prompt` goes before
  `config.prompt`.
  """
  spread = prompts.view_prompts if config.distillation.view_words != "none" else lambda words: [words]
  return embed(prior, texts(prior, config, config.prompt if prompt is None else prompt, spread))


def sides(config: ml_collections.FrozenConfigDict, text: Text, choose: Callable[[Array], Array],
          known: dict[str, Array], progress: Array) -> dict[str, Any]:
  """What a guided denoiser is told of B images: `cond`, `uncond`, and what the estimator adds.

  Args:
    text: of `embed`.
    choose: texts [V, T, D] -> [B, T, D], which image gets which.
    known: what else is told of each image, on every side: guidance strengthens the words, not the viewpoint.
    progress: fraction of the run that is done, [] float32.
  """
  chosen = choose(text["views"])
  null = jnp.broadcast_to(text["null"][None], chosen.shape)
  if config.distillation.estimator == "bridge":
    bridged = progress >= config.distillation.bridge.begins
    chosen = jnp.where(bridged, choose(text["target"]), chosen)
    null = jnp.where(bridged, choose(text["source"]), null)
  cond = dict(cond=dict(text=chosen, **known), uncond=dict(text=null, **known))
  if "negative" in text:
    cond["negative"] = dict(text=jnp.broadcast_to(text["negative"][None], chosen.shape), **known)
  return cond


def of_views(prior: Prior, params: Params, config: ml_collections.FrozenConfigDict, text: Any, cams: Camera,
             azimuth: Array, elevation: Array, progress: Array) -> dict[str, Any]:
  """What a guided denoiser is told of an object's views; asks for the step whether that is words or a picture.

  Of words: `sides`, with the text chosen by direction, and Perp-Neg's where it is on. The camera is told where the
  prior knows cameras.

  Args:
    params: of the prior.
    text: of `embed_prompts`, or what `view_conditions.of_views` wants.
    cams, azimuth, elevation: of the views, leaves [B, ...].
  """
  if prior.sight:
    return view_conditions.of_views(prior, params, config, text, azimuth, elevation)
  d = config.distillation
  known = dict(camera=cameras.camera_features(cams)) if prior.camera_dim else {}
  cond = sides(config, text, lambda texts: _by_direction(texts, azimuth, elevation, d.view_words), known, progress)
  if d.perp_neg != "none":
    cond |= perp_neg_sides(cond, text, azimuth, elevation, d.perp_neg,
                           schedule_value(scalar_spec(d.perp_neg_scale), progress))
  return cond


def _by_direction(texts: Array, azimuth: Array, elevation: Array, view_words: str) -> Array:
  """Of texts [V, T, D] that of each view, [B, T, D]."""
  if view_words == "none":
    return jnp.broadcast_to(texts[:1], (azimuth.shape[0],) + texts.shape[1:])
  if view_words == "nearest":
    return texts[prompts.view_index(azimuth, elevation)]
  weights = prompts.view_weights(azimuth, elevation).astype(texts.dtype)
  return jnp.einsum("bv,vtd->btd", weights, texts)


def perp_neg_sides(cond: dict[str, dict[str, Array]], text: Text, azimuth: Array, elevation: Array,
                   flavour: str, scale: Array) -> dict[str, Any]:
  """`cond`, `negatives` and `weights` of the views that `cond` is of, as Perp-Neg has them."""
  mix, weights = perp_neg_weights.VARIANTS[flavour](azimuth, elevation)
  chosen = jnp.einsum("bv,vtd->btd", mix.astype(text["views"].dtype), text["views"])
  told = lambda words: dict(cond["cond"], text=jnp.broadcast_to(words, chosen.shape))  # noqa: E731
  negatives = tuple(told(text["views"][view][None]) for view in perp_neg_weights.NEGATIVES)
  return dict(cond=told(chosen), negatives=negatives, weights=scale * weights)
