"""Variance-preserving noise schedules, read from the `scheduler_config.json` of a diffusers checkpoint.

A network works only with the schedule of its training, so all numbers come from the file of the checkpoint.
z_t = alpha_t x + sigma_t eps with alpha_t^2 + sigma_t^2 = 1 (DDPM, arXiv:2006.11239, eq. 4, with
alpha_t the square root of its alpha-bar).
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.prng import as_threefry
from sds_jax.types import Array, Schedule

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def _linear_betas(start: float, end: float, steps: int) -> np.ndarray:
  return np.linspace(start, end, steps)


def _scaled_linear_betas(start: float, end: float, steps: int) -> np.ndarray:
  """Computes betas linear in sqrt(beta): latent diffusion (arXiv:2112.10752) and Stable Diffusion."""
  return np.linspace(start**0.5, end**0.5, steps) ** 2


def _cosine_betas(start: float, end: float, steps: int) -> np.ndarray:
  """Computes the cosine schedule (arXiv:2102.09672, eq. 17).

  `start` and `end` have no effect.
  """
  time = np.arange(steps + 1) / steps
  # The offset 0.008 keeps the first betas from being too small (arXiv:2102.09672, section 3.2).
  alpha_bar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
  # The cap of the paper: the last beta would be 1.
  return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


BETA_SCHEDULES = {"linear": _linear_betas, "scaled_linear": _scaled_linear_betas, "squaredcos_cap_v2": _cosine_betas}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
LARGEST_STEPS = 100_000
"""Upper limit of the times of a schedule; published ones have up to 2000."""

_DDPM = dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
# The betas of latent diffusion, which these classes have as defaults.
_LATER = dict(beta_start=0.00085, beta_end=0.012)
_CLASSES: dict[str, dict[str, Any]] = {f"{name}Scheduler": defaults for names, defaults in (
  (("DDPM", "DDPMParallel", "DDIM", "DDIMInverse", "DDIMParallel", "PNDM", "RePaint", "LMSDiscrete", "EulerDiscrete",
    "EulerAncestralDiscrete", "DEISMultistep", "DPMSolverMultistep", "DPMSolverMultistepInverse",
    "DPMSolverSinglestep", "SASolver", "UniPCMultistep"), {}),
  (("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"), _LATER),
  (("LCM", "TCD"), dict(_LATER, beta_schedule="scaled_linear")),
  (("UnCLIP",), dict(beta_schedule="squaredcos_cap_v2"))) for name in names}
"""Classes of diffusers whose betas are the noise schedule -> their defaults where those differ from DDPM's."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "use_flow_sigmas": (False,), "timestep_type": ("discrete",), "snr_shift_scale": (1,), "sigma_data": (), "shift": ()}
"""{key: values under which the betas are the noise schedule}."""


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
  """Builds the schedule of a diffusers scheduler config.

  Args:
    config: the parsed `scheduler_config.json`. Keys read: `num_train_timesteps` (1000), `beta_start` (1e-4), `beta_end`
      (0.02), `beta_schedule` ("linear", "scaled_linear" or "squaredcos_cap_v2"), `trained_betas` (a list of T numbers
      in place of the formula), `rescale_betas_zero_snr` (arXiv:2305.08891). The defaults of the scheduler's class in
      diffusers (of DDPMScheduler in brackets) replace absent keys. Keys of samplers are ignored.

  Returns:
    Schedule with alpha and sigma of shape [T], computed in float64 and stored as float32.

  Raises:
    ValueError: an unsupported value; the message names the key, the value and the legal values.

  >>> schedule = schedule_from_config(dict(num_train_timesteps=2, beta_start=0.36, beta_end=0.36))
  >>> print(schedule.alpha, schedule.sigma)
  [0.8  0.64] [0.6       0.7683749]
  """
  # float64: the product of a thousand factors near 1 loses digits in float32.
  alpha_bar = np.cumprod(1.0 - _betas(config))
  alpha = np.sqrt(alpha_bar)
  rescale = config.get("rescale_betas_zero_snr", False)
  # By type and not by truth: the text "false" counts as true.
  if type(rescale) is not bool and rescale is not None:
    raise ValueError(f"rescale_betas_zero_snr={_shown(rescale)} is not supported; legal: true or false")
  if rescale:
    if not alpha[-1] < alpha[0]:
      raise ValueError(f"rescale_betas_zero_snr=True is not supported with num_train_timesteps={len(alpha)}; legal: at "
                       "least two times of different noise")
    # A shift makes the last step pure noise, and a scale restores the value of the first step.
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
  # Recomputed from the shifted alpha: a zero-SNR schedule stays variance preserving.
  sigma = np.sqrt(1.0 - alpha**2)
  return Schedule(alpha=jnp.asarray(alpha, jnp.float32), sigma=jnp.asarray(sigma, jnp.float32))


def _check_kind(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the defaults of the config's class.

  Raises unless the betas of the config are the noise schedule.
  """
  name = config.get("_class_name")
  name = name[-1] if isinstance(name, (list, tuple)) and name else name
  # diffusers' Flax classes have the same betas under another name.
  known = name is None or isinstance(name, str) and name.removeprefix("Flax") in _CLASSES
  if not known:
    raise ValueError(f"_class_name={_shown(name)} is not supported: its noise schedule is not made of betas (flow "
                     "matching, EDM, consistency, variance exploding), or the class is unknown; legal: schedulers of "
                     "variance-preserving diffusion, such as DDPMScheduler, DDIMScheduler or PNDMScheduler")
  for key, legal in _NEUTRAL.items():
    if config.get(key) not in (None, *legal):
      raise ValueError(f"{key}={_shown(config[key])} is not supported, since the noise schedule is then not that of "
                       f"the betas; legal: {legal[0] if legal else 'no such key'}")
  return {} if name is None else _CLASSES[name.removeprefix("Flax")]


def _shown(value: Any) -> str:
  """Returns a value for a message, cut to 80 characters."""
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:76]} ..."


def _betas(config: Mapping[str, Any]) -> np.ndarray:
  """Computes beta [T], float64, in (0, 1)."""
  defaults = _DDPM | _check_kind(config)
  steps = config.get("num_train_timesteps", 1000)
  # By type, since `isinstance` takes true for the number 1.
  if type(steps) is not int or not 1 <= steps <= LARGEST_STEPS:
    raise ValueError(f"num_train_timesteps={_shown(steps)} is not supported; legal: a whole number >= 1 and <= "
                     f"{LARGEST_STEPS}")
  # Trained betas replace the formula, as in diffusers.
  trained = config.get("trained_betas")
  if trained is not None:
    if not isinstance(trained, (list, tuple, np.ndarray)) or len(trained) > LARGEST_STEPS or not all(
        isinstance(beta, (int, float, np.number)) for beta in trained):
      raise ValueError(f"trained_betas={_shown(trained)} is not supported; legal: a list of up to {LARGEST_STEPS} "
                       "numbers in (0, 1)")
    betas = np.asarray(trained, np.float64)
    if betas.ndim != 1 or betas.size != config.get("num_train_timesteps", betas.size):
      raise ValueError(f"trained_betas has shape {betas.shape}; legal: a list of num_train_timesteps={steps} numbers")
  else:
    kind, start, end = (config.get(key, defaults[key]) for key in _DDPM)
    if kind not in tuple(BETA_SCHEDULES):
      raise ValueError(f"beta_schedule={_shown(kind)} is not supported; legal: {', '.join(BETA_SCHEDULES)}")
    for key, value in (("beta_start", start), ("beta_end", end)):
      if type(value) not in (int, float) or not 0 < value < 1:
        raise ValueError(f"{key}={_shown(value)} is not supported; legal: a number in (0, 1)")
    betas = BETA_SCHEDULES[kind](start, end, steps)
  if not np.all((betas > 0) & (betas < 1)):
    raise ValueError("trained_betas holds a value outside (0, 1); legal: numbers in (0, 1)")
  return betas


def flow_schedule(num_steps: int) -> Schedule:
  """Builds the straight path of a rectified flow.

  The path is z = (1 - tau) x + tau eps at integer times. It does not preserve variance: alpha + sigma = 1. Integer t
  means tau = (t + 1) / num_steps, so the last step is pure noise and no step is clean (arXiv:2209.03003; the grid of
  diffusers' FlowMatchEulerDiscreteScheduler without a shift).

  Args:
    num_steps: number of times.

  Raises:
    ValueError: num_steps is not a whole number >= 1.

  >>> print(flow_schedule(4).alpha)
  [0.75 0.5  0.25 0.  ]
  """
  if not isinstance(num_steps, (int, np.integer)) or num_steps < 1:
    raise ValueError(f"num_steps={num_steps!r} is not legal; legal: a whole number >= 1")
  # From 1: at tau = 0 the weight sigma / alpha and the SNR would be degenerate.
  tau = np.arange(1, num_steps + 1) / num_steps
  return Schedule(alpha=jnp.asarray(1 - tau, jnp.float32), sigma=jnp.asarray(tau, jnp.float32))


def prediction_type_from_config(config: Mapping[str, Any]) -> PredictionType:
  """Returns the output type of a network.

  The type is "epsilon" (the default), "v_prediction" or "sample".

  Args:
    config: the parsed `scheduler_config.json`.

  Raises:
    ValueError: another value of `prediction_type`.

  >>> print(prediction_type_from_config({}))
  epsilon
  """
  kind = config.get("prediction_type", "epsilon")
  if kind not in PREDICTION_TYPES:
    raise ValueError(f"prediction_type={_shown(kind)} is not supported; legal: {', '.join(PREDICTION_TYPES)}")
  return kind


def per_example(values: Array, like: Array) -> Array:
  """Reshapes values [B] to multiply like [B, ...].

  The result has the shape [B, 1, ..., 1] with the rank and dtype of like, and multiplies like example by example.

  >>> print(per_example(jnp.array([1, 2]), jnp.ones((2, 3, 1))).shape)
  (2, 1, 1)
  """
  # Without the cast a product with a bfloat16 `like` would be promoted to float32.
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)).astype(like.dtype)


def at_times(table: Array, t: Array) -> Array:
  """Returns the entries of a table [T] at integer times.

  The result has the shape of t and is sharded like t.

  Args:
    table: alpha or sigma of a schedule, of JAX or of NumPy.
    t: integer, any shape.

  >>> print(at_times(np.array([0.5, 0.25]), jnp.array([1, 0])))
  [0.25 0.5 ]
  """
  table, t = (jnp.asarray(a) if isinstance(a, (np.ndarray, list, tuple)) else a for a in (table, t))
  sharding = jax.typeof(t).sharding
  # On a mesh with explicit axes JAX does not choose the sharding of a gather.
  return table.at[t].get(out_sharding=sharding) if any(sharding.spec) else table[t]


def variance_preserving(schedule: Schedule) -> Schedule:
  """Returns the schedule with the same signal-to-noise ratios and alpha^2 + sigma^2 = 1.

  A network that predicts the noise of alpha x + sigma eps predicts that of the scaled path, too, so arithmetic that
  holds on variance-preserving schedules alone holds for every schedule in this form.

  >>> print(variance_preserving(Schedule(alpha=jnp.ones(1), sigma=jnp.full(1, 0.75))))
  Schedule(alpha=Array([0.8], dtype=float32), sigma=Array([0.6], dtype=float32))
  """
  alpha, sigma = jnp.asarray(schedule.alpha), jnp.asarray(schedule.sigma)
  total = jnp.sqrt(alpha**2 + sigma**2)
  return Schedule(alpha=alpha / total, sigma=sigma / total)


def snr(schedule: Schedule, t: Array) -> Array:
  """Computes the signal-to-noise ratio alpha_t^2 / sigma_t^2 at integer times.

  Args:
    schedule: of the noise.
    t: integer, any shape.

  Returns:
    float32, the shape of t.

  >>> print(snr(flow_schedule(4), jnp.array([0, 1])))
  [9. 1.]
  """
  return (at_times(schedule.alpha, t) / at_times(schedule.sigma, t)) ** 2


def add_noise(schedule: Schedule, x: Array, eps: Array, t: Array) -> Array:
  """Computes z_t = alpha_t x + sigma_t eps.

  Args:
    schedule: of the noise.
    x: [B, ...], clean.
    eps: [B, ...], standard normal noise, same shape and dtype as x.
    t: [B] integer times in 0 .. T-1 (JAX clamps an index beyond the end).

  Returns:
    z_t: [B, ...], dtype of x.

  Raises:
    ValueError: eps has another shape than x, or t is neither [B] nor a single time.

  >>> print(add_noise(flow_schedule(4), jnp.ones((1, 2)), jnp.full((1, 2), -1.0), jnp.array([0])))
  [[0.5 0.5]]
  """
  if np.shape(eps) != np.shape(x) or np.shape(t) not in ((), np.shape(x)[:1]):
    raise ValueError(f"x has shape {np.shape(x)}, eps {np.shape(eps)} and t {np.shape(t)}; legal: eps of the shape of "
                     f"x, and t of shape {np.shape(x)[:1]}")
  return per_example(at_times(schedule.alpha, t), x) * x + per_example(at_times(schedule.sigma, t), x) * eps


def draw_noise(key: Array, index: Array, like: Array, antithetic: bool = False) -> Array:
  """Draws standard normal noise for a batch.

  The draws do not depend on the layout over devices.

  Args:
    key: of the step; example b consumes fold_in(key, index[b]). Use the key for no other purpose. The draws are those
      of threefry, see `prng.as_threefry`.
    index: [B] integer, indices of the examples in the whole (global) batch.
    like: [B, ...], shape and dtype of the noise.
    antithetic: whether examples 2 i and 2 i + 1 get eps and -eps of fold_in(key, i); static. Each is still standard
      normal, and terms odd in eps cancel in the mean of a pair.

  Returns:
    eps: [B, ...].

  >>> eps = draw_noise(jax.random.key(0), jnp.arange(2), jnp.zeros((2, 3)), antithetic=True)
  >>> print(bool((eps[0] == -eps[1]).all()))
  True
  """
  key = as_threefry(key)

  def draw(i: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, i), like.shape[1:], like.dtype)

  # A key per example, not one key for the batch: the draw of an example must not depend on the local batch size.
  if not antithetic:
    return jax.vmap(draw)(index)
  # Pair i uses the key of example i, so its first partner equals the draw of a batch without pairs.
  sign = (1 - 2 * (index % 2)).astype(like.dtype)
  return per_example(sign, like) * jax.vmap(draw)(index // 2)
