"""Colour of a point from its albedo, its normal and a light (DreamFusion, arXiv 2209.14988, Section 3.1)."""
from __future__ import annotations

import jax.numpy as jnp

from sds_jax.fields.field import safe_normalize
from sds_jax.types import Array
from sds_jax.views.lights import TEXTURELESS, Shading


def shade(albedo: Array, normals: Array, points: Array, light: Array, shading: Shading) -> Array:
  """rho (l_a + l_rho max(0, n . (l - mu) / |l - mu|)) [N, 3], with rho = 1 where the mode is textureless.

  Args:
    albedo: [N, 3] in [0, 1].
    normals: [N, 3] outward unit normals.
    points: [N, 3] mu, world units.
    light: [N, 3] light positions l, world units.
    shading: the step's mode and intensities. (In albedo mode its intensities are 1 and 0, which leaves the albedo.)
  """
  cosine = jnp.sum(normals * safe_normalize(light - points), axis=-1)
  irradiance = shading.ambient + shading.diffuse * jnp.maximum(cosine, 0.0)
  reflectance = jnp.where(shading.mode == TEXTURELESS, jnp.ones_like(albedo), albedo)
  return reflectance * irradiance[:, None]
