"""Shading of points by a point light (DreamFusion, arXiv 2209.14988, Section 3.1)."""
from __future__ import annotations

import jax.numpy as jnp

from sds_jax.fields.field import safe_normalize
from sds_jax.types import Array
from sds_jax.views.lights import TEXTURELESS, Shading


def shade(albedo: Array, normals: Array, points: Array, light: Array, shading: Shading) -> Array:
  """Computes shaded colours [N, 3].

  rho (l_a + l_rho max(0, n . (l - mu) / |l - mu|)): rho is the albedo, or 1 in the textureless mode; l_a and l_rho are
  the ambient and diffuse intensities.

  Args:
    albedo: [N, 3] in [0, 1].
    normals: [N, 3] outward unit normals.
    points: [N, 3] mu, world units.
    light: [N, 3] light positions l, world units.
    shading: mode and intensities of the training step.
  """
  cosine = jnp.sum(normals * safe_normalize(light - points), axis=-1)
  # The albedo mode needs no case of its own: the intensities are ambient 1 and diffuse 0.
  irradiance = shading.ambient + shading.diffuse * jnp.maximum(cosine, 0.0)
  reflectance = jnp.where(shading.mode == TEXTURELESS, jnp.ones_like(albedo), albedo)
  return reflectance * irradiance[:, None]
