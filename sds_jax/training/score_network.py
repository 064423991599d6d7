"""VSD's second network: the prior with adapters, and a camera where the prior knows none; its state, its optimiser."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from sds_jax.diffusion import lora
from sds_jax.priors.prior import Prior
from sds_jax.training.state import lenient
from sds_jax.types import Array, DenoiseFn, Params
from sds_jax.views.cameras import CAMERA_DIM


def init(config: ml_collections.FrozenConfigDict, prior: Prior, prior_params: Params, text_dim: int,
         key: Array) -> Params:
  """phi, which changes nothing yet: dict(adapters=..., camera=[CAMERA_DIM, text_dim]); consumes `key`.

  Where the prior is told cameras itself there is no `camera`.
  """
  phi = dict(adapters=lora.init(key, prior_params["unet"], config.distillation.vsd.rank))
  return phi if prior.camera_dim else dict(phi, camera=jnp.zeros((CAMERA_DIM, text_dim)))


def make_score_fn(prior: Prior) -> DenoiseFn:
  """eps_phi: ((prior's parameters, phi), z, t, cond) -> eps [B, ...].

  cond is a side of what the prior is told; `camera` in it is added to every token of the text, by a linear map, where
  the prior itself knows no cameras.
  """
  def score_fn(params: tuple[Params, Params], z: Array, t: Array, cond: dict[str, Array]) -> Array:
    prior_params, phi = params
    if "camera" in phi and "camera" in cond:
      told = cond["camera"] @ phi["camera"]
      cond = {name: value for name, value in cond.items() if name != "camera"}
      cond["text"] += told[:, None].astype(cond["text"].dtype)
    return prior.denoise({**prior_params, "unet": lora.merge(prior_params["unet"], phi["adapters"])}, z, t, cond)

  return score_fn


def told(config: ml_collections.FrozenConfigDict, cond: dict[str, Any], camera: Array | None,
         key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
  """What eps_phi is told for the image's sake, and for its own learning: without the camera every so often.

  Args:
    cond: of `conditions.sides`.
    camera: [B, CAMERA_DIM] features of the views' cameras, or None where there are none (pictures).
    key: consumed.
  """
  # The prior's own camera goes before: it may be another, such as one relative to a picture's.
  own = dict(cond["cond"]) if camera is None else dict(camera=camera) | cond["cond"]
  if "camera" not in own:
    return own, own
  forget = jax.random.bernoulli(key, config.distillation.vsd.forget_camera)
  return own, dict(own, camera=jnp.where(forget, 0.0, own["camera"]))


def make_optimizer(config: ml_collections.FrozenConfigDict) -> optax.GradientTransformation:
  """Of phi: AdamW at a constant rate, with threestudio's betas and epsilon for VSD."""
  return lenient(optax.adamw(config.distillation.vsd.learning_rate, b1=0.9, b2=0.99, eps=1e-15, weight_decay=0.01))
