"""Score distillation: the gradient of a frozen diffusion model, put into any differentiable program.

DreamFusion (arXiv:2209.14988, eq. 3) moves the parameters theta of an image x = g(theta) along

  grad = E_{t, eps}[ w(t) (eps_hat(z_t; y, t) - eps) dx/dtheta ],   z_t = alpha_t x + sigma_t eps,

in which the network's own derivative is left out. No loss with that gradient is computed on the way, so the residual is
injected as the cotangent of x, and autodiff supplies the rest, dx/dtheta.

Your own generator and noise predictor (here an exact one, for data in which every pixel is 0.5):

  >>> from sds_jax.diffusion.schedules import schedule_from_config
  >>> schedule = schedule_from_config(dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
  >>> def denoise(params, z, t, cond):
  ...   return (z - per_example(schedule.alpha[t], z) * cond["mean"]) / per_example(schedule.sigma[t], z)
  >>> def loss_fn(theta, key):
  ...   image = jnp.broadcast_to(jax.nn.sigmoid(theta), (4, 8, 8, 3))
  ...   loss, aux = score_distillation(denoise, None, schedule, image, key, dict(mean=0.5))
  ...   return loss + 1e-3 * jnp.mean(image ** 2), aux
  >>> theta = jnp.full((8, 8, 3), 2.0)
  >>> grad_fn = jax.jit(jax.grad(loss_fn, has_aux=True))
  >>> for step in range(100):
  ...   grad, aux = grad_fn(theta, jax.random.key(step))
  ...   theta = theta - 10.0 * grad
  >>> print(f"{jax.nn.sigmoid(theta).mean():.2f}")
  0.50
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sds_jax.diffusion import timesteps
from sds_jax.diffusion.estimators import Estimator, find
from sds_jax.diffusion.estimators.base import EstimateFn
from sds_jax.diffusion.schedules import draw_noise, per_example
from sds_jax.diffusion.weightings import WEIGHTINGS, WeightFn
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def inject(x: Array, cotangent: Array) -> Array:
  """A scalar whose gradient with respect to x is the cotangent.

  It is there to be added to ordinary losses under one `jax.value_and_grad`. Its value is always 0 and means nothing:
  no loss is being computed. Reverse mode only (`jax.jvp` and `jax.hessian` raise TypeError).

  Args:
    x: [...], any floating dtype.
    cotangent: same shape as x; cast to x's dtype. Itself gets no gradient.

  Returns:
    0.0, float32, shape [].

  Raises:
    ValueError: the shapes differ.

  >>> print(jax.grad(inject)(jnp.zeros(3), jnp.array([1.0, -2.0, 0.5])))
  [ 1.  -2.   0.5]
  """
  if x.shape != cotangent.shape:
    raise ValueError(f"the cotangent has shape {cotangent.shape}, but x has {x.shape}")
  cotangent = cotangent.astype(x.dtype)
  return _inject(x + _zeros_of(cotangent), cotangent)


def _zeros_of(x: Array) -> Array:
  """Zeros like x that JAX takes to depend on x; XLA folds them to a constant.

  A custom rule must see x and its cotangent alike, batched over the same axes under vmap and varying over the same mesh
  axes under shard_map, and so must its scalar. Else the scalar's own cotangents are added up over the batch (or the
  devices) before they reach the rule, and the gradient is silently that many times too large.
  """
  return jnp.where(False, x, 0)


@jax.custom_vjp
def _inject(x: Array, cotangent: Array) -> Array:
  return _zeros_of(x).sum().astype(jnp.float32)


def _inject_forward(x: Array, cotangent: Array) -> tuple[Array, Array]:
  return _inject(x, cotangent), cotangent


def _inject_backward(cotangent: Array, outer: Array) -> tuple[Array, Array]:
  # `outer` is what the scalar was multiplied by downstream: 1, a loss weight, or 1 / devices under a pmean.
  return outer.astype(cotangent.dtype) * cotangent, jnp.zeros_like(cotangent)


_inject.defvjp(_inject_forward, _inject_backward)


@flax.struct.dataclass
class DistillationAux:
  """What a step of score distillation saw; nothing here carries a gradient. What is not used costs nothing under jit.

  Attributes:
    t: [B] int32, the noise level of each example, at which the network was asked (CDS: the lower of two; eps_hat and
      x0_hat are of the upper).
    eps: [B, ...], the noise that was added.
    eps_hat: [B, ...], the noise that the network saw (after guidance; CSD, which has none, gives eps_c).
    x0_hat: [B, ...], the network's guess of the clean x.
    grad_norm: [B] float32, norm of scale w(t) residual for each example, before clipping and before the mean over the
      batch. Watch this instead of the loss, which is always 0.

  Example: what a network that sees no noise has overlooked is the noise, with the weight sigma_t^2.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> blind, schedule, x = lambda params, z, t, cond: 0 * z, flow_schedule(4), jnp.zeros((2, 3))
    >>> _, aux = score_distillation(blind, None, schedule, x, jax.random.key(0), None, t=jnp.array([1, 3]))
    >>> length = schedule.sigma[aux.t] ** 2 * jnp.linalg.norm(aux.eps, axis=1)
    >>> print(aux.t, aux.eps.shape, bool(jnp.allclose(aux.grad_norm, length)))
    [1 3] (2, 3) True
  """
  t: Array
  eps: Array
  eps_hat: Array
  x0_hat: Array
  grad_norm: Array


def score_distillation(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, key: Array, cond: Any, *,
                       t: Array | None = None, t_range: timesteps.TRange = (0.02, 0.98), index: Array | None = None,
                       weighting: str | WeightFn = "sigma2",
                       estimator: str | Estimator | EstimateFn = "sds",
                       options: Mapping[str, Any] | None = None, scale: Array | float = 1.0,
                       clip_norm: Array | float | None = None,
                       antithetic: bool = False) -> tuple[Array, DistillationAux]:
  """A scalar to differentiate: its gradient with respect to x is that of score distillation, averaged over the batch.

  The cotangent of example b is scale w(t_b) residual_b / B, for SDS residual = eps_hat - eps: a sum over the pixels of
  an example, a mean over the B examples of this call. So averaging (pmean) the gradients of devices with equal B gives
  the whole batch's. This file's docstring shows its use.

  Args:
    denoise_fn: predicts the noise; `guidance.guided` makes a guided one, which some estimators ask for.
    params: its parameters; no gradient.
    schedule: the noise schedule that it was trained with.
    x: [B, ...], in the space in which the prior diffuses, differentiable in whatever made it (floating dtype).
    key: consumed; split into keys for t, for eps, and for what else an estimator draws, of which example b uses
      fold_in(., index[b]).
    cond: pytree with leaves [B, ...], as denoise_fn takes it; no gradient.
    t: [B] integer times; drawn uniformly from t_range where None.
    t_range: (low, high), fractions of the schedule in [0, 1].
    index: [B] integer, the examples' indices in the whole batch; 0 .. B-1 where None. Where a batch is laid out over
      devices, give the global ones, and the draws won't depend on the layout.
    weighting: a name in `WEIGHTINGS`, or a function (schedule, t [B]) -> [B].
    estimator: a name in `estimators.ESTIMATORS` or "package.module:NAME", an `Estimator`, or a function with the
      signature that `estimators` describes.
    options: keyword arguments of the estimator's function, by name; no gradient.
    scale: multiplies the gradient, a scalar or [B]; may be traced.
    clip_norm: if given, an example's scale w(t) residual is shortened to at most this norm; may be traced.
    antithetic: whether examples 2 i and 2 i + 1 get eps and -eps (static).

  Returns:
    (loss, aux): loss is 0.0 of shape [] and only its gradient has a meaning; aux is a `DistillationAux`.

  Raises:
    ValueError: unknown weighting or estimator; an estimator with a second term (`Estimator.term`), which belongs at
      another array than x; or an error of the estimator about its arguments.
    TypeError: an option that the estimator does not have, or a missing option.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> denoise = lambda params, z, t, cond: jnp.zeros_like(z)  # sees no noise at all
  >>> loss = lambda x: score_distillation(denoise, None, flow_schedule(4), x, jax.random.key(0), None, t=jnp.array([1]))
  >>> grad, aux = jax.grad(loss, has_aux=True)(jnp.zeros((1, 2)))
  >>> print(bool(jnp.allclose(grad, -0.5**2 * aux.eps)))  # w(t) = sigma^2 = 1/4
  True
  """
  estimate, weight_fn = _function_of(estimator), _weight_of(weighting)
  batch = x.shape[0]
  index = jnp.arange(batch) if index is None else index
  t_key, eps_key, own_key = jax.random.split(key, 3)
  t = timesteps.uniform(t_key, index, t_range, schedule.alpha.shape[0]) if t is None else t
  eps = draw_noise(eps_key, index, x, antithetic)
  keys = jax.vmap(lambda i: jax.random.fold_in(own_key, i))(index)
  arguments = jax.lax.stop_gradient((params, schedule, x, t, eps, cond, keys))
  residual, seen = estimate(denoise_fn, *arguments, **(options or {}))
  t = seen.get("t", t)

  gradient = per_example(scale * weight_fn(schedule, t), residual) * residual
  norm = jnp.sqrt(jnp.sum(gradient**2, axis=tuple(range(1, gradient.ndim))))
  if clip_norm is not None:
    gradient = per_example(jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12)), gradient) * gradient
  aux = DistillationAux(**dict(t=t, eps=eps, grad_norm=norm) | seen)
  return inject(x, jax.lax.stop_gradient(gradient / batch)), jax.lax.stop_gradient(aux)


def _function_of(estimator: str | Estimator | EstimateFn) -> EstimateFn:
  record = find(estimator) if isinstance(estimator, str) else estimator
  if not isinstance(record, Estimator):
    return record
  if record.term is not None:
    raise ValueError(f"estimator {record.name!r} has a second term, at another array than x: give record.fn for the term "
                     "at x, and inject record.second_term yourself")
  return record.fn


def _weight_of(weighting: str | WeightFn) -> WeightFn:
  if callable(weighting):
    return weighting
  if weighting not in WEIGHTINGS:
    raise ValueError(f"weighting {weighting!r} is not known; legal: {', '.join(WEIGHTINGS)}, or a function")
  return WEIGHTINGS[weighting]
