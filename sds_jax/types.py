"""Shared data types and function signatures.

Every type here is a frozen pytree (arrays as leaves) or a callable alias. Shape letters used in the whole package:

  B  images (views) in a batch        R  rays             N  points
  H, W  image height and width        S  samples on a ray  C  channels

World: right-handed, z up, the object inside the unit ball, the object's front facing +x. A camera at azimuth 0 is on
the +x side and so shows the front; azimuth grows counter-clockwise seen from above; angles are radians.
Images are float32 NHWC in [0, 1]; a prior's inputs are in [-1, 1].
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, TypeAlias

import flax.struct
import jax
from jax import export
from jax.typing import ArrayLike

Array: TypeAlias = jax.Array
Params: TypeAlias = Any
"""A pytree of arrays: the parameters of a network or of a field."""

DenoiseFn: TypeAlias = Callable[[Params, Array, Array, Any], Array]
"""(params, z_t [B, ...], t [B] integer index, cond pytree) -> eps_hat [B, ...], the predicted noise."""

EncodeFn: TypeAlias = Callable[[Params, Array, Array], Array]
"""(params, image [B, H, W, 3] in [0, 1], key) -> x [B, ...] in the prior's diffusion space."""

FieldFn: TypeAlias = Callable[[Params, Array], "FieldOutput"]
"""(params, points [N, 3] in world units) -> FieldOutput."""

GeneratorFn: TypeAlias = Callable[[Params, Array], Array]
"""(params, key) -> image; differentiable in the parameters."""


class PyTree(flax.struct.PyTreeNode):
  """Base of frozen dataclasses whose fields are arrays or pytrees.

  Each is a pytree, has `replace` for type checkers, and can be an argument or a result of a function that `jax.export`
  serialises.

  >>> class Pair(PyTree):
  ...   first: jax.Array
  ...   second: jax.Array
  >>> print(Pair(1.0, 2.0).replace(second=3.0), jax.tree.leaves(Pair(1.0, 2.0)))
  Pair(first=1.0, second=3.0) [1.0, 2.0]
  """

  def __init_subclass__(cls, **options: Any) -> None:
    super().__init_subclass__(**options)
    try:
      export.register_pytree_node_serialization(
          # Every field is a child of the node, so there is nothing else to serialise.
          cls, serialized_name=f"{cls.__module__}.{cls.__qualname__}", serialize_auxdata=lambda auxdata: b"",
          deserialize_auxdata=lambda data: ())
    except ValueError:  # a module that is loaded twice: the first class keeps the name
      pass


class Camera(PyTree):
  """A pinhole camera. Leading batch axes are allowed on every leaf.

  Attributes:
    position: [3], world units.
    rotation: [3, 3], orthonormal; the columns are the camera's right, up and backward axes in the world (the line of
      sight is minus the third column).
    focal: [], focal length divided by the image height, 0.5 / tan(fov_y / 2).
  """
  position: Array
  rotation: Array
  focal: Array


class Rays(PyTree):
  """Half-lines: origins [..., 3] in world units and directions [..., 3] of unit length."""
  origins: Array
  directions: Array


class FieldOutput(PyTree):
  """A field's values at points: density [N] >= 0 (per world unit) and albedo [N, 3] in [0, 1]."""
  density: Array
  albedo: Array


class RenderOutput(PyTree):
  """A renderer's values for rays, with leading axes [...] (flat rays, or an image's H, W).

  Attributes:
    rgb: [..., 3] in [0, 1], composited over the background.
    opacity: [...] in [0, 1], the sum of the weights.
    depth: [...], world units; expected distance along the ray of the visible surface (0 where the ray hits nothing).
    normals: [..., 3], weighted sum of outward unit normals (zeros when RenderOptions.normals is "none").
    orientation: [...], sum_i stop_gradient(w_i) max(0, n_i . v)^2, DreamFusion's penalty on back-facing normals.
  """
  rgb: Array
  opacity: Array
  depth: Array
  normals: Array
  orientation: Array


class Schedule(PyTree):
  """A noise schedule on T integer times: z_t = alpha[t] x + sigma[t] eps.

  The functions of the package also take a schedule of NumPy arrays.

  Attributes:
    alpha: [T] float32, falling; in diffusion the sqrt of the cumulative product of (1 - beta).
    sigma: [T] float32, rising; in diffusion sqrt(1 - alpha^2), and 1 - alpha on a straight path (rectified flow).

  >>> schedule = Schedule(alpha=jax.numpy.ones(3), sigma=jax.numpy.array([0.1, 1.0, 10.0]))  # variance exploding
  >>> print(schedule.replace(sigma=2 * schedule.sigma).sigma)
  [ 0.2  2.  20. ]
  """
  alpha: Array
  sigma: Array

  if TYPE_CHECKING:
    def __init__(self, alpha: ArrayLike, sigma: ArrayLike) -> None: ...
