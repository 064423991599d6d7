"""Every published way to turn the predictions of a frozen diffusion model into a direction for an image.

An estimator is a pure function. `score_distillation` takes a name, a record, or a function of your own:

  (denoise_fn, params, schedule, x, t, eps, cond, keys, **arguments) -> (residual, seen)

  denoise_fn  predicts the noise, (params, z_t [B, ...], t [B], cond) -> [B, ...]; only `ldiff` differentiates it
  params      of denoise_fn
  schedule    the noise schedule that the network was trained with
  x           [B, ...], clean images in the space in which the prior diffuses
  t           [B] integer times
  eps         [B, ...] standard normal noise; z_t = alpha_t x + sigma_t eps
  cond        condition of denoise_fn, leaves [B, ...]
  keys        [B] keys, one an example, consumed where an estimator draws more than t and eps
  arguments   the estimator's own settings and inputs, by name

residual [B, ...] float32 replaces eps_hat - eps in DreamFusion's gradient (arXiv:2209.14988, eq. 3).
`score_distillation` multiplies the residual by the weight w(t), clips the product and injects the result at x. seen is
dict(eps_hat=[B, ...], x0_hat=[B, ...]), with t or eps where the network was asked at another t or under another noise,
and perhaps with further values, which `DistillationAux.extras` holds.

An estimator of your own, here SDS that clips predictions to [-1, 1]:

  >>> import jax
  >>> import jax.numpy as jnp
  >>> def bounded(denoise_fn, params, schedule, x, t, eps, cond, keys):
  ...   z = add_noise(schedule, x, eps, t)
  ...   eps_hat = jnp.clip(denoise_fn(params, z, t, cond), -1.0, 1.0)
  ...   return eps_hat - eps, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))
  >>> from sds_jax import add_noise, schedule_from_config, score_distillation
  >>> from sds_jax.diffusion.parameterizations import x0_from_eps
  >>> loss = lambda x: score_distillation(lambda p, z, t, c: 9.0 * z, None, schedule_from_config({}), x,
  ...                                     jax.random.key(0), None, estimator=bounded)[0]
  >>> print(jax.grad(loss)(jnp.ones((1, 2))).shape)
  (1, 2)

For settings and runs to know an estimator by name, the estimator needs a record (`base.Estimator`): in ESTIMATORS, or
in a module of your own that settings name as "package.module:NAME".
"""
from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from sds_jax.diffusion.estimators import asd, cds, dds, hifa, ism, ldiff, linear, pds, rfds, sdi, sjc, vsd
from sds_jax.diffusion.estimators.base import Draw, Estimator, Moment, fill, options_of
from sds_jax.schema import AUTO, Legal

__all__ = ["AUTO", "ESTIMATORS", "Draw", "Estimator", "Moment", "fill", "find", "legal_name", "options_of", "problems"]

ESTIMATORS: dict[str, Estimator] = {record.name: record for record in (
    linear.SDS, linear.SCORE, linear.CSD, linear.NFSD, linear.BRIDGE, sjc.SPEC, rfds.SPEC, ldiff.SPEC, vsd.SPEC,
    dds.SPEC, pds.SPEC, asd.SPEC, ism.SPEC, sdi.SPEC, cds.SPEC, hifa.SPEC)}
"""Name -> record."""


def find(name: str) -> Estimator:
  """Returns the record of a name in ESTIMATORS, or of "package.module:NAME".

  Raises:
    ValueError: one line; the name is not known, the module cannot be imported, or NAME is no `Estimator`.

  >>> print(find("ism").paper, find("sds_jax.diffusion.estimators.ism:SPEC").paper)
  2311.11284 2311.11284
  """
  if name in ESTIMATORS:
    return ESTIMATORS[name]
  module, colon, attribute = name.partition(":")
  if not colon or not module or not attribute:
    raise ValueError(f"estimator {name!r} is not known; legal: {', '.join(ESTIMATORS)}, or package.module:NAME")
  try:
    record = getattr(importlib.import_module(module), attribute)
  except Exception as error:  # whatever a user's module raises
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(f"estimator {name!r} cannot be imported ({reason}); it must be package.module:NAME, where NAME is "
                     "an Estimator of sds_jax.diffusion.estimators.base") from error
  if not isinstance(record, Estimator):
    raise ValueError(f"estimator {name!r} is of type {type(record).__name__}: it must be an Estimator of "
                     "sds_jax.diffusion.estimators.base")
  return record


def legal_name() -> Legal:
  """Allows the names of ESTIMATORS, and names of the form package.module:NAME.

  >>> legal = legal_name()
  >>> print(legal.test("csd"), legal.test("mine.py"), legal.test("mine:SPEC"))
  True False True
  """
  # Only the form: nothing of the user is imported to read a setting.
  return Legal(lambda name: name in ESTIMATORS or 0 < name.find(":") < len(name) - 1,
               lambda: f"one of {', '.join(ESTIMATORS)}, or package.module:NAME, an Estimator of your own")


def problems(distillation: Any, path: str) -> Iterator[str]:
  """Yields one line for each setting of the group `distillation` that does not go with its estimator.

  Args:
    distillation: settings with the fields estimator, guidance_scale and source, and those that the estimator's own
      relations read (perp_neg, latent_until).
    path: of the group, such as "config.distillation".

  >>> import types
  >>> distillation = types.SimpleNamespace(estimator="csd", guidance_scale=7.5, source="")
  >>> print(next(problems(distillation, "config.distillation"))[:87])
  config.distillation.guidance_scale=7.5 has no effect with config.distillation.estimator
  """
  try:
    record = find(distillation.estimator)
  except ValueError as error:
    yield f"{path}.estimator={distillation.estimator!r} is not legal: {error}"
    return
  chosen = f"{path}.estimator={distillation.estimator!r}"
  published = record.published.guidance_scale if record.published else AUTO
  # The settings of a run are stored with their published values filled in, and read again.
  if not record.guided and distillation.guidance_scale not in (AUTO, published):
    yield (f"{path}.guidance_scale={distillation.guidance_scale!r} has no effect with {chosen}: leave it at {AUTO!r}; "
           "config.loss.sds and the learning rate take its place")
  if distillation.source and "source" not in record.needs:
    edits = " or ".join(name for name, other in ESTIMATORS.items() if "source" in other.needs)
    yield (f"{path}.source={distillation.source!r} is what {edits} edits, but {chosen}: set the estimator to {edits}, "
           "or source to ''")
  if record.relations:
    yield from record.relations(distillation, path)
