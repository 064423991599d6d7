"""Image generators by name; a user's generator by module and function."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sds_jax.generators.parameterization import Parameterization
from sds_jax.generators.cppn import make_cppn
from sds_jax.generators.fourier import make_fourier
from sds_jax.generators.gaussians import make_gaussians
from sds_jax.generators.pixels import make_pixels
from sds_jax.generators.shared import make_shared
from sds_jax.generators.siren import make_siren
from sds_jax.generators.symmetric import make_symmetric
from sds_jax.generators.texture import make_texture
from sds_jax.generators.translucent import make_translucent

WRAPPABLE = {"pixels": make_pixels, "fourier": make_fourier, "cppn": make_cppn, "siren": make_siren,
             "gaussians": make_gaussians}
"""Generators of one plain image, which `symmetric` can mirror."""


def _symmetric(size: int, of: str = "fourier", settings: dict[str, Any] | None = None) -> Parameterization:
  return make_symmetric(WRAPPABLE[of](size, **(settings or {})))


GENERATORS: dict[str, Callable[..., Parameterization]] = {
    **WRAPPABLE, "shared": make_shared, "symmetric": _symmetric, "translucent": make_translucent,
    "texture": make_texture}
"""Name -> (size, **settings) -> Parameterization."""


class GeneratorError(ValueError):
  """Raised for a generator that cannot be used.

  The message is one line with the generator's name and the problem.
  """


def make_generator(name: str, size: int, settings: dict[str, Any]) -> Parameterization:
  """Returns the generator of a name, whose images are size x size.

  Args:
    name: a key of GENERATORS; or "package.module:function", where the user's function (size) returns an object with
      `init` and `apply`, and perhaps other attributes, of a `Parameterization`. The module must be importable.
    size: side of the images.
    settings: keywords for one of GENERATORS; a user's function gets none.

  Raises:
    GeneratorError: the name is unknown; or the user's function cannot be imported, fails, or returns no images.
  """
  if ":" in name:
    return _load_users_generator(name, size)
  if name not in GENERATORS:
    raise GeneratorError(f"{name!r} is not a generator; legal: {', '.join(GENERATORS)}, or package.module:function")
  return GENERATORS[name](size, **settings)


def _load_users_generator(name: str, size: int) -> Parameterization:
  """Imports and calls the user's function, and checks shapes and types.

  `eval_shape` computes no image.
  """
  module, _, function = name.partition(":")
  try:
    users_object = getattr(importlib.import_module(module), function)(size)
    # Copied by name, so that the user's object need not be of a class of this package.
    attributes = {field: getattr(users_object, field) for field in Parameterization.__dataclass_fields__
                  if hasattr(users_object, field)}
    generator = Parameterization(**attributes)
    params = jax.eval_shape(generator.init, jax.random.key(0))
    image = jax.eval_shape(generator.apply, params, jax.random.key(0))
    shown = jax.eval_shape(generator.show, params) if generator.show else image
    large = jax.eval_shape(lambda params: generator.at(params, 2 * size), params) if generator.at else None
    optional = [fn for fn in (generator.extras, generator.penalty) if fn is not None]
    jax.eval_shape(lambda params: [fn(params) for fn in optional], params)
    if generator.cameras:
      jax.eval_shape(generator.cameras, jax.random.key(0))
  except Exception as error:  # whatever a user's code raises
    raise GeneratorError(f"{name!r} does not work ({type(error).__name__}: {error}); it must be an importable module "
                         "and its function (size) -> an object with init(key) -> params and apply(params, key) -> "
                         "images") from error
  check_images(f"{name!r}: apply", image, generator.frames, size)
  check_images(f"{name!r}: show", shown, generator.frames, size)
  if generator.at:
    check_images(f"{name!r}: at", large, generator.frames, 2 * size)
  # jax.grad refuses integer leaves, and with a message that does not name the parameter.
  if fixed := [leaf for leaf in jax.tree.leaves(params) if not jnp.issubdtype(leaf.dtype, jnp.floating)]:
    raise GeneratorError(f"{name!r}: init returns a parameter {fixed[0]}: only floating-point arrays can be learnt; "
                         "keep other arrays in the object")
  return generator


def check_images(what: str, image: Any, frames: int, size: int | None = None) -> None:
  """Raises GeneratorError unless `image` is [frames, size, size, 3] float32.

  `image` is a result of `eval_shape`; size None allows any size.
  """
  shape = getattr(image, "shape", ())
  wanted = size or (shape[1] if len(shape) == 4 else "H")
  if shape != (frames, wanted, wanted, 3) or image.dtype != jnp.float32:
    raise GeneratorError(f"{what} returns {image}; it must return images [{frames}, {wanted}, {wanted}, 3] float32")
