"""Fields: blobs, bound, activations, normals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.fields import field as fields
from sds_jax.fields.field import FIELDS, make_field
from sds_jax.types import FieldOutput

SMALL = {"mlp": dict(hidden=8), "paper_mlp": dict(hidden=8, blocks=1), "hashgrid": dict(levels=2, finest=16, hidden=8)}
POINTS = np.random.default_rng(0).uniform(-0.7, 0.7, (200, 3)).astype(np.float32)


def ball(params, points):
  """Evaluates a soft ball of radius 0.5, with normals x / |x|."""
  radius = jnp.sqrt(jnp.sum(points**2, axis=-1))
  return FieldOutput(params * jax.nn.sigmoid((0.5 - radius) * 20), jnp.full_like(points, 0.5))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_is_bounded_and_well_formed(name):
  field = make_field(name, **SMALL[name])
  params, apply = jax.jit(field.init)(jax.random.key(0)), jax.jit(field.apply)
  out = apply(params, jnp.asarray(POINTS))
  assert out.density.shape == (200,) and out.albedo.shape == (200, 3) and out.density.dtype == jnp.float32
  assert out.density.min() >= 0 and 0 < out.albedo.min() and out.albedo.max() < 1
  radius = np.linalg.norm(POINTS, axis=1)
  assert (np.asarray(out.density)[radius > 0.8] == 0).all() and (radius > 0.8).any()
  assert (np.asarray(out.density)[radius < 0.7] > 0).all()
  damped = apply(params, jnp.asarray(POINTS), jnp.float32(0.05))
  assert (np.abs(np.asarray(damped.albedo) - np.asarray(out.albedo)).max() > 1e-3) == (name != "hashgrid")


@pytest.mark.parametrize("options, expected", [
  (dict(density="exp", blob="gaussian", blob_scale=5.0, blob_radius=0.2), lambda r: np.exp(5 * np.exp(-r**2 / 0.08))),
  (dict(density="softplus", blob="linear", blob_scale=10.0, blob_radius=0.5),
   lambda r: np.log1p(np.exp(10 * (1 - r / 0.5)))),
  (dict(density="exp", blob="none", density_bias=-1.0), lambda r: np.full_like(r, np.exp(-1.0))),
], ids=["dreamfusion", "magic3d", "none"])
def test_initial_density_is_the_blob(options, expected):
  field = make_field("hashgrid", **SMALL["hashgrid"], **options)  # the initial features and so the logits are near 0
  inner = POINTS[np.linalg.norm(POINTS, axis=1) < 0.7]
  density = field.apply(field.init(jax.random.key(0)), jnp.asarray(inner)).density
  np.testing.assert_allclose(density, expected(np.linalg.norm(inner, axis=1)), rtol=2e-3)


def test_exp_density_does_not_overflow():
  field = make_field("mlp", hidden=8, density="exp", blob="gaussian", blob_scale=1e3)
  value, gradient = jax.jit(jax.value_and_grad(
    lambda p: jnp.sum(field.apply(p, jnp.zeros((1, 3))).density)))(jax.jit(field.init)(jax.random.key(0)))
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_density_and_normals_have_finite_gradients_at_the_centre():
  field = make_field("mlp", hidden=8)
  points, params = jnp.zeros((1, 3)), jax.jit(field.init)(jax.random.key(0))
  gradient = jax.jit(jax.grad(lambda p: jnp.sum(fields.with_normals(field.apply, p, points)[1])))(params)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("with_normals, tolerance", [
  (fields.with_normals, 1e-3), (lambda *args: fields.with_difference_normals(*args, step=1e-3), 2e-2)],
  ids=["analytic", "difference"])
def test_normals_of_a_ball_point_outward(with_normals, tolerance):
  shell = POINTS[np.abs(np.linalg.norm(POINTS, axis=1) - 0.5) < 0.15]
  out, normals = jax.jit(lambda params, points: with_normals(ball, params, points))(jnp.float32(30.0), shell)
  outward = shell / np.linalg.norm(shell, axis=1, keepdims=True)
  np.testing.assert_allclose(normals, outward, atol=tolerance)  # a flipped sign is off by 2
  np.testing.assert_allclose(out.density, ball(jnp.float32(30.0), jnp.asarray(shell)).density, rtol=1e-6)


def test_gradient_through_analytic_normals_equals_finite_differences():
  field = make_field("mlp", hidden=8)
  params, points = jax.device_get(jax.jit(field.init)(jax.random.key(1))), jnp.asarray(POINTS[:20] * 0.5)
  target = jnp.asarray(np.random.default_rng(1).normal(size=(20, 3)), jnp.float32)
  direction = jax.tree.map(lambda x: np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), params)
  loss = jax.jit(jax.value_and_grad(lambda p: jnp.sum(fields.with_normals(field.apply, p, points)[1] * target)))
  exact = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), loss(params)[1], direction)))
  h = np.float32(2e-3)
  plus, minus = (loss(jax.tree.map(lambda p, d: p + s * h * d, params, direction))[0] for s in (1, -1))
  np.testing.assert_allclose(exact, (plus - minus) / (2 * h), rtol=2e-2)
  assert abs(exact) > 0.1


def test_safe_normalize_of_zero_is_zero_with_a_finite_gradient():
  value, gradient = jax.value_and_grad(lambda v: jnp.sum(fields.safe_normalize(v)))(jnp.zeros((1, 3)))
  assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("arguments, message", [
  (("voxels", {}), "unknown field 'voxels'; known: hashgrid, mlp, paper_mlp"),
  (("mlp", dict(density="relu")), "unknown density activation 'relu'; known: exp, softplus"),
  (("mlp", dict(blob="cube")), "unknown blob 'cube'; known: gaussian, linear, none")])
def test_unknown_names_are_errors(arguments, message):
  with pytest.raises(ValueError) as caught:
    make_field(arguments[0], **arguments[1])
  assert str(caught.value) == message
