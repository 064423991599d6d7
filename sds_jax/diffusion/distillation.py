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

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sds_jax.diffusion import checks, guidance, timesteps
from sds_jax.diffusion.estimators import Estimator, find
from sds_jax.diffusion.estimators.base import EstimateFn
from sds_jax.diffusion.schedules import draw_noise, per_example
from sds_jax.diffusion.weightings import WEIGHTINGS, WeightFn, sigma_over_alpha
from sds_jax.prng import as_threefry, example_keys
from sds_jax.types import Array, DenoiseFn, Params, PyTree, Schedule


def inject(x: Array, cotangent: Array) -> Array:
  """Returns 0 with the cotangent as its gradient in x.

  Add the scalar to ordinary losses under a common `jax.value_and_grad`. Only the gradient has a meaning; no loss is
  computed. Derivatives of the gradient exist in both modes: `jax.hessian`, `jax.linearize(jax.grad(f), x)`, and
  `jax.jvp(jax.grad(f), ...)` differentiate a program with this gradient. In them the cotangent counts as given: a
  cotangent that depends on x contributes its own derivative unless `jax.lax.stop_gradient` makes the cotangent a
  constant. `jax.jvp(f, ...)` of the scalar itself raises TypeError, because a custom rule for reverse mode has none for
  forward mode and a scalar without a value has no directional derivative of its own.

  Args:
    x: [...], any floating dtype.
    cotangent: same shape as x. The gradient is computed in at least float32 and has the dtype of x. The cotangent
      itself gets no gradient.

  Returns:
    0.0 of shape [], float32; float64 for a float64 x.

  Raises:
    ValueError: the shapes differ, or a dtype is no floating dtype.

  >>> print(jax.grad(inject)(jnp.zeros(3), jnp.array([1.0, -2.0, 0.5])))
  [ 1.  -2.   0.5]
  """
  if np.shape(x) != np.shape(cotangent):
    raise ValueError(f"the cotangent has shape {np.shape(cotangent)}, but x has {np.shape(x)}")
  x, cotangent = jnp.asarray(x), jnp.asarray(cotangent)
  if not (jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(cotangent.dtype, jnp.floating)):
    raise ValueError(f"x has dtype {x.dtype}, and the cotangent {cotangent.dtype}; legal: floating dtypes")
  dtype = checks.widened(x)
  cotangent = cotangent.astype(dtype)
  # Without the stop a first-order gradient would run back through whatever made the cotangent, with zeros.
  return _inject(x + _dependent_zeros(jax.lax.stop_gradient(cotangent).astype(x.dtype)), cotangent, x.dtype)


def _dependent_zeros(x: Array) -> Array:
  """Returns zeros like x with a formal dependence on x.

  XLA folds the zeros to a constant. A custom rule needs x, its cotangent and its scalar batched over the same axes
  under vmap, and varying over the same mesh axes under shard_map. Otherwise JAX adds up the cotangents of the scalar
  over the batch (or the devices) before the rule, and the gradient is silently too large by the size of the batch.
  """
  return jnp.where(False, x, 0)


def _zero(x: Array) -> Array:
  return _dependent_zeros(x).sum().astype(checks.widened(x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _inject(x: Array, cotangent: Array, dtype: jnp.dtype) -> Array:
  return _zero(x)


def _inject_forward(x: Array, cotangent: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
  # Not `_inject` itself: forward mode over reverse mode differentiates this function, and has no rule for `_inject`.
  return _zero(x), cotangent


def _inject_backward(dtype: jnp.dtype, cotangent: Array, outer: Array | float) -> tuple[Array, None]:
  # `outer` is the downstream factor of the scalar: 1, a loss weight or scale, 1 / devices under a pmean, or the Python
  # number that a caller gives a pullback of `jax.vjp`. The product in float32 keeps small gradients in float16 alive
  # under a loss scale; the cast to the dtype of x, which JAX requires, comes last.
  return (jnp.asarray(outer, cotangent.dtype) * cotangent).astype(dtype), None


_inject.defvjp(_inject_forward, _inject_backward)


class DistillationAux(PyTree):
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
    extras: further values that an estimator of your own returns beside eps_hat and x0_hat, by name.

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
  extras: dict[str, Any] = dataclasses.field(default_factory=dict)


def score_distillation(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, key: Array, cond: Any, *,
                       t: ArrayLike | Sequence[int] | None = None, t_range: timesteps.TRange = (0.02, 0.98),
                       index: ArrayLike | Sequence[int] | None = None, weighting: str | WeightFn = "sigma2",
                       estimator: str | Estimator | EstimateFn = "sds",
                       options: Mapping[str, Any] | None = None, scale: ArrayLike = 1.0,
                       clip_norm: ArrayLike | None = None,
                       antithetic: bool = False) -> tuple[Array, DistillationAux]:
  """Returns a scalar with the gradient of score distillation in x.

  The gradient is averaged over the batch: the cotangent of example b is scale w(t_b) residual_b / B, with residual =
  eps_hat - eps for SDS, a sum over the pixels of an example and a mean over the B examples of the call. Averaging
  (pmean) the gradients of devices with equal B therefore gives the gradient of the whole batch. Residuals are float32;
  float64 for a float64 x under `jax_enable_x64`. The module docstring has an example.

  The gradient in x is all that a first derivative sees; scale, clip_norm, options, params and cond get zeros.
  Derivatives of the gradient (hyper-gradients, Hessians, `inject`) treat x, params, cond and options within the
  residual as constants, and differentiate scale, clip_norm, a weighting and the scale of `guidance.guided`.

  Args:
    denoise_fn: predicts the noise; some estimators need a guided denoiser of `guidance.guided`.
    params: parameters of denoise_fn, a pytree, perhaps with functions among its leaves (Equinox); no gradient.
    schedule: the noise schedule of the trained network, of JAX or NumPy arrays.
    x: [B, ...], floating dtype, in the diffusion space of the prior, differentiable in the parameters of a generator.
    key: consumed; split into keys for t, for eps, and for further draws of the estimator. Example b uses
      fold_in(., index[b]). The draws are those of threefry; a key of another implementation (rbg on TPUs) is turned
      into a threefry key, since its draws under vmap would depend on the batch.
    cond: pytree with leaves [B, ...], the condition of denoise_fn; no gradient.
    t: [B] integer times in 0 .. T-1; None draws uniformly from t_range.
    t_range: (low, high), fractions of the schedule with 0 <= low <= high <= 1.
    index: [B] integer, indices of the examples in the whole batch; None means 0 .. B-1. For a batch sharded over
      devices give global indices, so that the draws do not depend on the layout. On a mesh with explicit axes index
      and t may be sharded like the batch.
    weighting: a name in `WEIGHTINGS`, or a function (schedule, t [B]) -> [B] or a number. The default sigma2 is at most
      1 for variance-preserving and flow schedules, and grows to sigma_max^2 for variance-exploding ones (see
      `weightings`).
    estimator: a name in `estimators.ESTIMATORS` or "package.module:NAME", an `Estimator`, or a function with the
      signature documented in `estimators`.
    options: keyword arguments of the function of the estimator, by name; no gradient.
    scale: factor of the gradient, a scalar or [B]; may be traced.
    clip_norm: if given, the largest norm of scale w(t) residual of an example, a scalar or [B]; may be traced.
    antithetic: whether examples 2 i and 2 i + 1 get eps and -eps (static).

  Returns:
    loss, aux: the loss is 0.0 of shape [] and only its gradient has a meaning; aux is a `DistillationAux`.

  Raises:
    ValueError: a shape, a dtype or a known value is not legal, of the arguments or of a prediction; unknown weighting
      or estimator; an estimator with a second term (`Estimator.term`) at another array than x; or an argument refused
      by the estimator.
    TypeError: an unknown or a missing option of the estimator; forward mode of the scalar (see `inject`).

  >>> from sds_jax.diffusion.schedules import flow_schedule
  >>> denoise = lambda params, z, t, cond: jnp.zeros_like(z)  # predicts no noise
  >>> loss = lambda x: score_distillation(denoise, None, flow_schedule(4), x, jax.random.key(0), None, t=jnp.array([1]))
  >>> grad, aux = jax.jit(jax.grad(loss, has_aux=True))(jnp.zeros((1, 2)))
  >>> print(bool(jnp.allclose(grad, -0.5**2 * aux.eps)))  # w(t) = sigma^2 = 1/4
  True
  """
  estimate, weight_fn = _function_of(estimator), _weight_of(weighting)
  schedule = checks.check_schedule(schedule)
  x = checks.check_images(x, t, index, cond)
  batch, steps = x.shape[0], schedule.alpha.shape[0]
  index = jnp.arange(batch) if index is None else checks.check_integers("index", index, batch)
  scale = checks.check_factor("scale", scale, batch)
  # Three keys even where t is given, so that eps is the same for a drawn t and for a given t.
  t_key, eps_key, estimator_key = jax.random.split(as_threefry(key), 3)
  if weight_fn is sigma_over_alpha:
    checks.check_signal(schedule, t, t_range)
  # One t for all views that the network looks at together.
  group = guidance.group_of(denoise_fn)
  t = (timesteps.uniform(t_key, index // group, t_range, steps) if t is None
       else checks.check_integers("t", t, batch, steps))
  # Keys depend on global indices, so the draws are the same for any number of devices.
  eps = draw_noise(eps_key, index, x, antithetic)
  keys = example_keys(estimator_key, index)
  # No gradient may reach the network: its backward pass would cost as much as two forward passes, for nothing.
  arguments = checks.stop_gradient((params, schedule, x, t, eps, cond, keys))
  estimated = estimate(denoise_fn, *arguments, **checks.stop_gradient(dict(options or {})))
  residual, values = _check_estimate(estimated, x, estimator)
  t = values.get("t", t)  # some estimators query the network at another time

  # The residual is at least float32; the cast to the dtype of x happens last, in `inject`.
  gradient = per_example(scale * _weights(weight_fn, schedule, t), residual) * residual
  norm = jnp.sqrt(jnp.sum(gradient**2, axis=tuple(range(1, gradient.ndim))))
  if clip_norm is not None:
    clip_norm = checks.check_factor("clip_norm", clip_norm, batch, lowest=0.0)
    # The floor covers clip_norm = 0 on a residual of zeros, which would be 0 / 0.
    gradient = per_example(jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12)), gradient) * gradient
  # Values of the estimator replace the defaults: eps, and for some estimators t.
  fields = dict(t=t, eps=eps, grad_norm=norm) | {name: values[name] for name in _FIELDS & values.keys()}
  aux = DistillationAux(**fields, extras={name: values[name] for name in values.keys() - _FIELDS})
  return inject(x, gradient / batch), checks.stop_gradient(aux)


_FIELDS = {"t", "eps", "eps_hat", "x0_hat"}
"""Values of an estimator that are fields of `DistillationAux`."""


def _check_estimate(estimated: Any, x: Array, estimator: str | Estimator | EstimateFn) -> tuple[Array, dict[str, Any]]:
  """Returns the residual, at least float32, and the values of an estimator."""
  name = getattr(estimator, "name", getattr(estimator, "__name__", estimator))
  legal = "legal: (residual like x, dict(eps_hat=like x, x0_hat=like x)), with further values by name"
  if not (isinstance(estimated, tuple) and len(estimated) == 2 and isinstance(estimated[1], Mapping)):
    raise ValueError(f"the estimator {name!r} returned a {type(estimated).__name__}; {legal}")
  residual, values = estimated
  if lacking := sorted({"eps_hat", "x0_hat"} - values.keys()):
    raise ValueError(f"the estimator {name!r} returned no {lacking[0]}; {legal}")
  for part, array in dict(residual=residual, eps_hat=values["eps_hat"], x0_hat=values["x0_hat"]).items():
    # Another shape might broadcast against x, to a wrong gradient.
    if np.shape(array) != x.shape:
      raise ValueError(f"{part} of the estimator {name!r} has shape {np.shape(array)}, but x has {x.shape}; {legal}")
  if "t" in values and np.shape(values["t"]) != x.shape[:1]:
    raise ValueError(f"t of the estimator {name!r} has shape {np.shape(values['t'])}; legal: {x.shape[:1]}")
  return jnp.asarray(residual).astype(checks.widened(residual, x)), dict(values)


def _weights(weight_fn: WeightFn, schedule: Schedule, t: Array) -> Array:
  """Returns w(t) [B], also of a weighting that returns a number."""
  weights = weight_fn(schedule, t)
  if np.shape(weights) not in ((), t.shape):
    raise ValueError(f"the weighting returned shape {np.shape(weights)} for t of shape {t.shape}; legal: {t.shape}")
  weights = jnp.asarray(weights)
  if not jnp.issubdtype(weights.dtype, jnp.floating):
    weights = weights.astype(jnp.float32)
  return weights if weights.shape == t.shape else jnp.broadcast_to(weights, t.shape)


def _function_of(estimator: str | Estimator | EstimateFn) -> EstimateFn:
  record = find(estimator) if isinstance(estimator, str) else estimator
  if not callable(record):
    raise ValueError(f"estimator={estimator!r} is not legal: a name, an Estimator, or a function")
  if not isinstance(record, Estimator):
    return record
  if record.term is not None:
    raise ValueError(f"estimator {record.name!r} has a second term at another array than x; give record.fn for the "
                     "term at x, and inject record.second_term yourself")
  return record.fn


def _weight_of(weighting: str | WeightFn) -> WeightFn:
  if callable(weighting):
    return weighting
  if not isinstance(weighting, str) or weighting not in WEIGHTINGS:
    raise ValueError(f"weighting {weighting!r} is not known; legal: {', '.join(WEIGHTINGS)}, or a function")
  return WEIGHTINGS[weighting]
