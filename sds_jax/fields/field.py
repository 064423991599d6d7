"""From a network's logits to a bounded field: density activation, blob, bound, normals; fields by name."""
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
  """exp, clipped: no density is worth more than e^12 and float32 must not overflow."""
  return jnp.exp(jnp.minimum(logit, _MAX_LOGIT))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"exp": _exp, "softplus": nn.softplus}


def gaussian_blob(points: Array, scale: float, radius: float) -> Array:
  """DreamFusion's initial density (Appendix A.2), [N]: scale exp(-|x|^2 / (2 radius^2)); paper: 5 and 0.2."""
  return scale * jnp.exp(-jnp.sum(points**2, axis=-1) / (2 * radius**2))


def linear_blob(points: Array, scale: float, radius: float) -> Array:
  """Magic3D's initial density (arXiv 2211.10440), [N]: scale (1 - |x| / radius); paper: 10 and 0.5."""
  return scale * (1 - jnp.sqrt(jnp.sum(points**2, axis=-1) + 1e-12) / radius)


def no_blob(points: Array, scale: float, radius: float) -> Array:
  """No initial density: zeros [N]."""
  del scale, radius
  return jnp.zeros_like(points[:, 0])


BLOBS: dict[str, Callable[[Array, float, float], Array]] = {
  "gaussian": gaussian_blob, "linear": linear_blob, "none": no_blob}


@dataclasses.dataclass(frozen=True)
class Field:
  """A field as two functions: init(key) -> params, and apply(params, points [N, 3], variance=None) -> FieldOutput."""
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
    bound: radius of the ball outside of which there is nothing, world units.
    density: key of ACTIVATIONS, the function act.
    blob, blob_scale, blob_radius: key of BLOBS and its constants; what the object starts from. DreamFusion: "gaussian",
      5, 0.2 with density "exp"; Magic3D: "linear", 10, 0.5 with "softplus".
    density_bias: added to the logit.
    **options: attributes of the network.

  Raises:
    ValueError: an unknown name, density activation or blob.
  """
  _check(name, FIELDS, "field")
  _check(density, ACTIVATIONS, "density activation")
  _check(blob, BLOBS, "blob")
  if name == "hashgrid":
    options = {"bound": bound, **options}
  network = FIELDS[name](**options)

  def init(key: Array) -> Params:
    return network.init(key, jnp.zeros((1, 3)))["params"]

  def apply(params: Params, points: Array, variance: Array | None = None) -> FieldOutput:
    logit, albedo = network.apply({"params": params}, points, variance)
    logit = logit + density_bias + BLOBS[blob](points, blob_scale, blob_radius)
    return FieldOutput(ACTIVATIONS[density](logit) * inside(points, bound), jax.nn.sigmoid(albedo))

  return Field(init, apply, bound)


def inside(points: Array, bound: float, margin: float = 0.05) -> Array:
  """1 inside the ball, 0 outside, with a smoothstep in the outermost share `margin` of the radius; [N]."""
  radius = jnp.sqrt(jnp.sum(points**2, axis=-1) + 1e-12)
  rise = jnp.clip((1 - radius / bound) / margin, 0.0, 1.0)
  return rise * rise * (3 - 2 * rise)


def with_normals(field: FieldFn, params: Params, points: Array) -> tuple[FieldOutput, Array]:
  """The field and its outward unit normals n = -grad density / |grad density| [N, 3], by automatic differentiation.

  Differentiable in turn where the network is twice differentiable. Where the gradient vanishes, so does the normal.
  """
  density, pullback, albedo = jax.vjp(lambda p: _density_first(field(params, p)), points, has_aux=True)
  gradient, = pullback(jnp.ones_like(density))
  return FieldOutput(density, albedo), safe_normalize(-gradient)


def with_difference_normals(field: FieldFn, params: Params, points: Array,
                            step: float = 1e-2) -> tuple[FieldOutput, Array]:
  """The field and its normals [N, 3] by forward differences of width `step` (world units): three more densities."""
  out = field(params, points)
  offsets = [field(params, points + step * jnp.eye(3, dtype=points.dtype)[axis][None]).density for axis in range(3)]
  return out, safe_normalize(-(jnp.stack(offsets, axis=-1) - out.density[:, None]) / step)


def safe_normalize(vectors: Array, epsilon: float = 1e-6) -> Array:
  """v / sqrt(|v|^2 + epsilon^2), so that zero vectors stay zero and every gradient is finite."""
  return vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + epsilon**2)


def _density_first(out: FieldOutput) -> tuple[Array, Array]:
  return out.density, out.albedo


def _check(name: str, known: dict, kind: str) -> None:
  if name not in known:
    raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
