"""Bounded fields from networks: density activation, initial blob, bound, normals; fields by name."""
from __future__ import annotations

import dataclasses
from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sds_jax.fields.hashgrid import HashGridField
from sds_jax.fields.mlp import MLPField, PaperMLPField
from sds_jax.types import Array, FieldFn, FieldOutput, Params

FIELDS: dict[str, Callable[..., nn.Module]] = {
  "mlp": MLPField,
  "paper_mlp": PaperMLPField,
  "hashgrid": HashGridField,
}
"""Networks (points [N, 3], variance or None) -> (density logit [N], albedo logits [N, 3]), by name."""

_MAX_LOGIT = 12.0


def _exp(logit: Array) -> Array:
  """Returns exp(logit), at most e^12."""
  # A density of e^12 is opaque within any step; beyond e^88 float32 overflows.
  return jnp.exp(jnp.minimum(logit, _MAX_LOGIT))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"exp": _exp, "softplus": nn.softplus}


def gaussian_blob(points: Array, scale: float, radius: float) -> Array:
  """Returns DreamFusion's initial density [N] (Appendix A.2).

  The density is scale exp(-|x|^2 / (2 radius^2)). The paper has scale 5 and radius 0.2.
  """
  return scale * jnp.exp(-jnp.sum(points**2, axis=-1) / (2 * radius**2))


def linear_blob(points: Array, scale: float, radius: float) -> Array:
  """Returns Magic3D's initial density [N] (arXiv 2211.10440).

  The density is scale (1 - |x| / radius). The paper has scale 10 and radius 0.5.
  """
  # 1e-12 under the root: the derivative of sqrt at 0 is infinite, and 0 * inf would be NaN.
  return scale * (1 - jnp.sqrt(jnp.sum(points**2, axis=-1) + 1e-12) / radius)


def no_blob(points: Array, scale: float, radius: float) -> Array:
  """Returns zeros [N]."""
  del scale, radius
  return jnp.zeros_like(points[:, 0])


BLOBS: dict[str, Callable[[Array, float, float], Array]] = {
  "gaussian": gaussian_blob, "linear": linear_blob, "none": no_blob}


@dataclasses.dataclass(frozen=True)
class Field:
  """A field as two functions.

  Attributes:
    init: key -> params. Consumes the key.
    apply: (params, points [N, 3] in world units, variance [] or [N] or None) -> FieldOutput.
    bound: radius of the ball outside which the density is 0, world units.
  """
  init: Callable[[Array], Params]
  apply: Callable[..., FieldOutput]
  bound: float


def make_field(name: str, *, bound: float = 0.8, density: str = "softplus", blob: str = "linear",
               blob_scale: float = 10.0, blob_radius: float = 0.35, density_bias: float = 0.0, **options) -> Field:
  """Builds a field by name.

  density = act(logit + density_bias + blob(x)) inside |x| < bound, faded smoothly to zero in the outermost 5 %;
  albedo = sigmoid of its logits.

  Args:
    name: key of FIELDS.
    bound: radius of the ball outside which the density is 0, world units.
    density: key of ACTIVATIONS, the function act.
    blob: key of BLOBS, the initial density.
    blob_scale, blob_radius: constants of the blob. DreamFusion: "gaussian", 5, 0.2 with density "exp"; Magic3D:
      "linear", 10, 0.5 with "softplus".
    density_bias: constant added to the logit.
    **options: attributes of the network.

  Raises:
    ValueError: `name`, `density` or `blob` is unknown.
  """
  _check(name, FIELDS, "field")
  _check(density, ACTIVATIONS, "density activation")
  _check(blob, BLOBS, "blob")
  if name == "hashgrid":  # the grid covers the cube around the ball; the other networks have no bound
    options = {"bound": bound, **options}
  network = FIELDS[name](**options)

  def init(key: Array) -> Params:
    return network.init(key, jnp.zeros((1, 3)))["params"]

  def apply(params: Params, points: Array, variance: Array | None = None) -> FieldOutput:
    logit, albedo = network.apply({"params": params}, points, variance)
    # The blob is added to the logit and not to the density, so that training can also take density away.
    logit = logit + density_bias + BLOBS[blob](points, blob_scale, blob_radius)
    # The mask multiplies the density, since no finite logit makes exp or softplus exactly 0.
    return FieldOutput(ACTIVATIONS[density](logit) * ball_mask(points, bound), jax.nn.sigmoid(albedo))

  return Field(init, apply, bound)


def ball_mask(points: Array, bound: float, margin: float = 0.05) -> Array:
  """Returns a smooth mask [N] of the ball.

  The mask is 1 inside and 0 outside. The edge is a smoothstep over the outermost share `margin` of the radius.
  """
  # The derivative of sqrt at 0 is infinite, as in `linear_blob`.
  radius = jnp.sqrt(jnp.sum(points**2, axis=-1) + 1e-12)
  rise = jnp.clip((1 - radius / bound) / margin, 0.0, 1.0)
  return rise * rise * (3 - 2 * rise)


def with_normals(field: FieldFn, params: Params, points: Array) -> tuple[FieldOutput, Array]:
  """Computes the field and the normals by automatic differentiation.

  The outward unit normals [N, 3] are n = -grad density / |grad density|, and 0 where the gradient vanishes. The normals
  are differentiable in `params` where the network is twice differentiable (smooth activations, smoothstep weights).
  """
  # Points are independent, so one pullback of ones gives the gradient of every point.
  density, pullback, albedo = jax.vjp(lambda p: _density_first(field(params, p)), points, has_aux=True)
  gradient, = pullback(jnp.ones_like(density))
  return FieldOutput(density, albedo), safe_normalize(-gradient)


def with_difference_normals(field: FieldFn, params: Params, points: Array,
                            step: float = 1e-2) -> tuple[FieldOutput, Array]:
  """Computes the field and the normals by forward differences.

  The normals are [N, 3]. `step` is the width of the differences in world units. Costs three more evaluations of the
  field.
  """
  out = field(params, points)
  # Forward, not central: the value at the point is needed anyway, so three evaluations suffice instead of six.
  offsets = [field(params, points + step * jnp.eye(3, dtype=points.dtype)[axis][None]).density for axis in range(3)]
  return out, safe_normalize(-(jnp.stack(offsets, axis=-1) - out.density[:, None]) / step)


def safe_normalize(vectors: Array, epsilon: float = 1e-6) -> Array:
  """Computes v / sqrt(|v|^2 + epsilon^2).

  Zero vectors stay zero, with a finite gradient.
  """
  return vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + epsilon**2)


def _density_first(out: FieldOutput) -> tuple[Array, Array]:
  return out.density, out.albedo


def _check(name: str, known: dict, kind: str) -> None:
  if name not in known:
    raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
