"""What the prior is told: the texts of a run, embedded once; and of each view, a text and perhaps its camera."""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_collections

from sds_jax.diffusion.scalars import schedule_value
from sds_jax.priors.prior import Prior, check_words
from sds_jax.training.config import scalar_spec
from sds_jax.types import Array, Camera
from sds_jax.views import cameras, perp_neg, prompts

Text = dict[str, Array]


def texts(prior: Prior, config: ml_collections.FrozenConfigDict, prompt: str | None = None) -> dict[str, list[str]]:
  """All that is said in a run: name -> sentences, one for each view where the name is one of PER_VIEW, else one.

  Words about quality mean nothing to a prior that knows a few words only: where one is unknown the empty (or negative)
  prompt stands in, and the prompt itself for the bridge's target.

  Args:
    prompt: goes before `config.prompt`.
  """
  d, negative = config.distillation, config.negative_prompt
  prompt = config.prompt if prompt is None else prompt
  views = prompts.view_prompts if d.view_words != "none" else lambda words: [words]
  said = dict(views=views(prompt), null=[negative])
  if d.estimator in ("csd", "nfsd"):
    said["negative"] = [_if_known(prior, d[d.estimator].negative_prompt, negative)]
  elif d.estimator == "bridge":
    target = _if_known(prior, prompt + d.bridge.target_words, prompt)
    source = _if_known(prior, prompt + d.bridge.source_words, "")
    said |= dict(target=views(target), source=views(source) if source else [negative] * len(views(prompt)))
  elif d.estimator in ("dds", "pds"):
    said["source"] = views(d.source_prompt) if d.source_prompt else [negative] * len(views(prompt))
  return said


def _if_known(prior: Prior, words: str, otherwise: str) -> str:
  try:
    check_words([words], prior.vocabulary)
  except ValueError:
    return otherwise
  return words


PER_VIEW = ("views", "target", "source")


def embed_prompts(prior: Prior, config: ml_collections.FrozenConfigDict, prompt: str | None = None) -> Text:
  """The texts of a run, embedded: {"views": [V, T, D] (one for each of `prompts.VIEWS`), "null": [T, D], ...}.

  "null" is `config.negative_prompt`, "" where there is none. Some estimators have more (`texts`).
  """
  said = texts(prior, config, prompt)
  embedded = prior.embed([sentence for sentences in said.values() for sentence in sentences])
  found, first = {}, 0
  for name, sentences in said.items():
    group = embedded[first:first + len(sentences)]
    found[name] = group if name in PER_VIEW else group[0]
    first += len(sentences)
  return found


def condition(prior: Prior, config: ml_collections.FrozenConfigDict, text: Text, cams: Camera, azimuth: Array,
              elevation: Array, progress: Array) -> dict[str, Any]:
  """What a guided denoiser is told of B views: `cond`, `uncond`, and what estimator and Perp-Neg add to them.

  The camera is told where the prior knows cameras, on every side: guidance strengthens the words, not the viewpoint.

  Args:
    text: of `embed_prompts`.
    cams, azimuth, elevation: of the views, leaves [B, ...].
    progress: fraction of the run that is done, [] float32.
  """
  d = config.distillation
  if d.estimator == "bridge":
    bridged = progress >= d.bridge.begins
    text = dict(text, views=jnp.where(bridged, text["target"], text["views"]))
  cond = of_views(prior, text, cams, azimuth, elevation, d.view_words)
  if d.estimator == "bridge":
    source = of_views(prior, dict(text, views=text["source"]), cams, azimuth, elevation, d.view_words)["cond"]
    cond["uncond"] = dict(source, text=jnp.where(bridged, source["text"], cond["uncond"]["text"]))
  if "negative" in text:
    cond["negative"] = dict(cond["cond"], text=jnp.broadcast_to(text["negative"][None], cond["cond"]["text"].shape))
  if d.perp_neg != "none":
    cond |= perp_neg_sides(cond, text, azimuth, elevation, d.perp_neg,
                           schedule_value(scalar_spec(d.perp_neg_scale), progress))
  return cond


def of_views(prior: Prior, text: Text, cams: Camera, azimuth: Array, elevation: Array,
             view_words: str) -> dict[str, dict[str, Array]]:
  """`cond` and `uncond` alone: text chosen by direction, and the camera where the prior knows cameras."""
  if view_words == "none":
    chosen = jnp.broadcast_to(text["views"][:1], (azimuth.shape[0],) + text["views"].shape[1:])
  elif view_words == "nearest":
    chosen = text["views"][prompts.view_index(azimuth, elevation)]
  else:
    weights = prompts.view_weights(azimuth, elevation).astype(text["views"].dtype)
    chosen = jnp.einsum("bv,vtd->btd", weights, text["views"])
  known = dict(camera=cameras.camera_features(cams)) if prior.camera_dim else {}
  null = jnp.broadcast_to(text["null"][None], chosen.shape)
  return dict(cond=dict(text=chosen, **known), uncond=dict(text=null, **known))


def perp_neg_sides(cond: dict[str, dict[str, Array]], text: Text, azimuth: Array, elevation: Array,
                   flavour: str, scale: Array) -> dict[str, Any]:
  """`cond`, `negatives` and `weights` of the views that `cond` is of, as Perp-Neg has them."""
  mix, weights = perp_neg.FLAVOURS[flavour](azimuth, elevation)
  chosen = jnp.einsum("bv,vtd->btd", mix.astype(text["views"].dtype), text["views"])
  told = lambda words: dict(cond["cond"], text=jnp.broadcast_to(words, chosen.shape))  # noqa: E731
  negatives = tuple(told(text["views"][view][None]) for view in perp_neg.NEGATIVES)
  return dict(cond=told(chosen), negatives=negatives, weights=scale * weights)
