"""Score distillation: the gradient of a frozen diffusion model, injected into any differentiable program.

DreamFusion (arXiv:2209.14988, eq. 3) moves the parameters theta of an image x = g(theta) along

  grad = E_{t, eps}[ w(t) (eps_hat(z_t; y, t) - eps) dx/dtheta ],   z_t = alpha_t x + sigma_t eps,

without the derivative of the network. No loss with the gradient exists in closed form, so the residual is injected as
the cotangent of x, and autodiff supplies dx/dtheta.

Example: a custom generator and a noise predictor, here exact for data with every pixel at 0.5:

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
  """Returns 0 with the cotangent as its gradient in x.

  Add the scalar to ordinary losses under a common `jax.value_and_grad`. Only the gradient has a meaning; no loss is
  computed. Reverse mode only (`jax.jvp` and `jax.hessian` raise TypeError).

  Args:
    x: [...], any floating dtype.
    cotangent: same shape as x; cast to the dtype of x. The cotangent itself gets no gradient.

  Returns:
    0.0, float32, shape [].

  Raises:
    ValueError: the shapes differ.

  >>> print(jax.grad(inject)(jnp.zeros(3), jnp.array([1.0, -2.0, 0.5])))
  [ 1.  -2.   0.5]
  """
  if x.shape != cotangent.shape:
    raise ValueError(f"the cotangent has shape {cotangent.shape}, but x has {x.shape}")
  # JAX requires the cotangent of x in the dtype of x.
  cotangent = cotangent.astype(x.dtype)
  return _inject(x + _dependent_zeros(cotangent), cotangent)


def _dependent_zeros(x: Array) -> Array:
  """Returns zeros like x with a formal dependence on x.

  XLA folds the zeros to a constant. A custom rule needs x, its cotangent and its scalar batched over the same axes
  under vmap, and varying over the same mesh axes under shard_map. Otherwise JAX adds up the cotangents of the scalar
  over the batch (or the devices) before the rule, and the gradient is silently too large by the size of the batch.
  """
  return jnp.where(False, x, 0)


@jax.custom_vjp
def _inject(x: Array, cotangent: Array) -> Array:
  return _dependent_zeros(x).sum().astype(jnp.float32)


def _inject_forward(x: Array, cotangent: Array) -> tuple[Array, Array]:
  return _inject(x, cotangent), cotangent


def _inject_backward(cotangent: Array, outer: Array) -> tuple[Array, Array]:
  # `outer` is the downstream factor of the scalar: 1, a loss weight, or 1 / devices under a pmean.
  return outer.astype(cotangent.dtype) * cotangent, jnp.zeros_like(cotangent)


_inject.defvjp(_inject_forward, _inject_backward)


@flax.struct.dataclass
class DistillationAux:
  """Intermediate values of a step of score distillation, without gradients.

  Unused fields cost nothing under jit.

  Attributes:
    t: [B] int32, the noise level of each example in the network (CDS: the lower of two levels; eps_hat and x0_hat are
      at the upper).
    eps: [B, ...], the added noise.
    eps_hat: [B, ...], the predicted noise after guidance (CSD has no guidance and returns eps_c).
    x0_hat: [B, ...], the predicted clean x.
    grad_norm: [B] float32, norm of scale w(t) residual of each example, before clipping and before the mean over the
      batch. Monitor grad_norm instead of the loss, because the loss is always 0.

  Example: a network without any prediction misses all of the noise, with the weight sigma_t^2.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> zero, schedule, x = lambda params, z, t, cond: 0 * z, flow_schedule(4), jnp.zeros((2, 3))
    >>> _, aux = score_distillation(zero, None, schedule, x, jax.random.key(0), None, t=jnp.array([1, 3]))
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
  """Returns a scalar with the gradient of score distillation in x.

  The gradient is averaged over the batch: the cotangent of example b is scale w(t_b) residual_b / B, with residual =
  eps_hat - eps for SDS, a sum over the pixels of an example and a mean over the B examples of the call. Averaging
  (pmean) the gradients of devices with equal B therefore gives the gradient of the whole batch. The module docstring
  has an example.

  Args:
    denoise_fn: predicts the noise; some estimators need a guided denoiser of `guidance.guided`.
    params: parameters of denoise_fn; no gradient.
    schedule: the noise schedule of the trained network.
    x: [B, ...], floating dtype, in the diffusion space of the prior, differentiable in the parameters of a generator.
    key: consumed; split into keys for t, for eps, and for further draws of the estimator. Example b uses
      fold_in(., index[b]).
    cond: pytree with leaves [B, ...], the condition of denoise_fn; no gradient.
    t: [B] integer times; None draws uniformly from t_range.
    t_range: (low, high), fractions of the schedule in [0, 1].
    index: [B] integer, indices of the examples in the whole batch; None means 0 .. B-1. For a batch sharded over
      devices give global indices, so that the draws do not depend on the layout.
    weighting: a name in `WEIGHTINGS`, or a function (schedule, t [B]) -> [B].
    estimator: a name in `estimators.ESTIMATORS` or "package.module:NAME", an `Estimator`, or a function with the
      signature documented in `estimators`.
    options: keyword arguments of the function of the estimator, by name; no gradient.
    scale: factor of the gradient, a scalar or [B]; may be traced.
    clip_norm: if given, the largest norm of scale w(t) residual of an example; may be traced.
    antithetic: whether examples 2 i and 2 i + 1 get eps and -eps (static).

  Returns:
    loss, aux: the loss is 0.0 of shape [] and only its gradient has a meaning; aux is a `DistillationAux`.

  Raises:
    ValueError: unknown weighting or estimator; an estimator with a second term (`Estimator.term`) at another array than
      x; or an argument refused by the estimator.
    TypeError: an unknown or a missing option of the estimator.

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> denoise = lambda params, z, t, cond: jnp.zeros_like(z)  # predicts no noise
  >>> loss = lambda x: score_distillation(denoise, None, flow_schedule(4), x, jax.random.key(0), None, t=jnp.array([1]))
  >>> grad, aux = jax.grad(loss, has_aux=True)(jnp.zeros((1, 2)))
  >>> print(bool(jnp.allclose(grad, -0.5**2 * aux.eps)))  # w(t) = sigma^2 = 1/4
  True
  """
  estimate, weight_fn = _function_of(estimator), _weight_of(weighting)
  batch = x.shape[0]
  index = jnp.arange(batch) if index is None else index
  t_key, eps_key, estimator_key = jax.random.split(key, 3)
  t = timesteps.uniform(t_key, index, t_range, schedule.alpha.shape[0]) if t is None else t
  # Keys depend on global indices, so the draws are the same for any number of devices.
  eps = draw_noise(eps_key, index, x, antithetic)
  keys = jax.vmap(lambda i: jax.random.fold_in(estimator_key, i))(index)
  # No gradient may reach the network: its backward pass would cost as much as two forward passes, for nothing.
  arguments = jax.lax.stop_gradient((params, schedule, x, t, eps, cond, keys))
  residual, values = estimate(denoise_fn, *arguments, **(options or {}))
  t = values.get("t", t)  # some estimators query the network at another time

  # The residual is float32; the cast to the dtype of x happens last, in `inject`.
  gradient = per_example(scale * weight_fn(schedule, t), residual) * residual
  # The norm stays in the dtype of the residual, float32 for all estimators even with a bfloat16 network.
  norm = jnp.sqrt(jnp.sum(gradient**2, axis=tuple(range(1, gradient.ndim))))
  if clip_norm is not None:
    gradient = per_example(jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12)), gradient) * gradient
  # Values of the estimator replace the defaults: eps, and for some estimators t.
  aux = DistillationAux(**dict(t=t, eps=eps, grad_norm=norm) | values)
  return inject(x, jax.lax.stop_gradient(gradient / batch)), jax.lax.stop_gradient(aux)


def _function_of(estimator: str | Estimator | EstimateFn) -> EstimateFn:
  record = find(estimator) if isinstance(estimator, str) else estimator
  if not isinstance(record, Estimator):
    return record
  if record.term is not None:
    raise ValueError(f"estimator {record.name!r} has a second term at another array than x; give record.fn for the "
                     "term at x, and inject record.second_term yourself")
  return record.fn


def _weight_of(weighting: str | WeightFn) -> WeightFn:
  if callable(weighting):
    return weighting
  if weighting not in WEIGHTINGS:
    raise ValueError(f"weighting {weighting!r} is not known; legal: {', '.join(WEIGHTINGS)}, or a function")
  return WEIGHTINGS[weighting]
