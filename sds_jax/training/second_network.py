"""The second network of an estimator: the prior with adapters, their conditions and optimiser.

Where the prior knows no cameras, a linear map adds the view's camera to every token of the text.
"""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sds_jax.diffusion import lora
from sds_jax.diffusion.estimators.base import SecondNetwork
from sds_jax.priors.prior import Prior
from sds_jax.training.optimizer import lenient
from sds_jax.types import Array, DenoiseFn, Params
from sds_jax.views.cameras import CAMERA_DIM


def init(options: SecondNetwork, prior: Prior, prior_params: Params, text_dim: int, key: Array) -> Params:
  """Returns phi, which at first leaves the prior unchanged.

  Args:
    options: of the estimator.
    prior: the frozen diffusion model.
    prior_params: of `prior`.
    text_dim: width of the tokens that the U-Net attends to.
    key: consumed.

  Returns:
    dict(adapters=..., camera=[CAMERA_DIM, text_dim]), without `camera` where the prior itself knows cameras.
  """
  phi = dict(adapters=lora.init(key, prior_params["unet"], options.rank))
  # Zeros: whatever the camera is, the prior is unchanged at first.
  return phi if prior.camera_dim else dict(phi, camera=jnp.zeros((CAMERA_DIM, text_dim)))


def make_score_fn(prior: Prior) -> DenoiseFn:
  """Returns eps_phi.

  eps_phi is a function ((parameters of the prior, phi), z, t, cond) -> eps [B, ...].

  cond is one side of the prior's condition. Where phi has a `camera`, the condition's `camera` is mapped and added to
  every token of the text.
  """
  def score_fn(params: tuple[Params, Params], z: Array, t: Array, cond: dict[str, Array]) -> Array:
    prior_params, phi = params
    if "camera" in phi and "camera" in cond:
      shift = cond["camera"] @ phi["camera"]
      # A new dictionary: the caller's condition keeps its text.
      cond = {name: value for name, value in cond.items() if name != "camera"}
      cond["text"] += shift[:, None].astype(cond["text"].dtype)
    return prior.denoise({**prior_params, "unet": lora.merge(prior_params["unet"], phi["adapters"])}, z, t, cond)

  return score_fn


def score_conditions(options: SecondNetwork, cond: dict[str, Any], camera: Array | None,
                     key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
  """Returns the conditions for estimating with phi and for training phi.

  The conditions for training drop the camera at random.

  Args:
    options: of the estimator.
    cond: of `conditions.of_views` or `conditions.sides`.
    camera: [B, CAMERA_DIM] features of the views' cameras; None for images without cameras.
    key: consumed.
  """
  # The prior's own camera takes precedence: it may be relative to the camera of a photo.
  estimating = dict(cond["cond"]) if camera is None else dict(camera=camera) | cond["cond"]
  if "camera" not in estimating:
    return estimating, estimating
  # One draw for the whole step, whose key is the same on every device.
  forget = jax.random.bernoulli(key, options.forget_camera)
  return estimating, dict(estimating, camera=jnp.where(forget, 0.0, estimating["camera"]))


def make_optimizer(options: SecondNetwork) -> optax.GradientTransformation:
  """Returns the optimiser of phi: AdamW at a constant rate.

  Betas and epsilon are threestudio's for VSD.
  """
  return lenient(optax.adamw(options.learning_rate, b1=0.9, b2=0.99, eps=1e-15, weight_decay=0.01))
