"""The step in PyTorch computes our image, gradient and update, and the check notices differences."""
import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sds_jax.benchmarks import parts, peer, step_draws, workload
from sds_jax.fields.field import with_normals
from sds_jax.rendering.occupancy import Occupancy
from sds_jax.tasks import Text3DTask
from sds_jax.views.lights import ALBEDO, LAMBERTIAN, TEXTURELESS


def quietly(function):
  """Calls a function without the warnings of torch and diffusers."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return function()


@pytest.fixture(scope="module")
def torch_step():
  """The module `benchmarks.torch_step`, imported without the warnings of torch and diffusers."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for module in ("torch", "diffusers"):
      pytest.importorskip(module, reason="needs sds_jax[parity]", exc_type=ImportError)
    from sds_jax.benchmarks import torch_step as module
    return module


def in_the_middle(state, step):
  """Returns a state like that of a run at `step`: Adam has moments, and the grid has empty cells."""
  rng = np.random.default_rng(0)
  like = lambda tree, scale: jax.tree.map(  # noqa: E731
    lambda x: jnp.asarray(scale * (1 + np.abs(rng.normal(size=x.shape))), jnp.float32), tree)
  opt_state = optax.tree_utils.tree_set(state.opt_state, mu=like(state.params, 0.1), nu=like(state.params, 0.1),
                                        count=jnp.int32(step))
  density = jnp.asarray(rng.uniform(size=state.occupancy.density.shape) < 0.04, jnp.float32)
  return state.replace(step=jnp.int32(step), opt_state=opt_state, occupancy=Occupancy(density))


CHANGES = {"shading.lambertian": 0.4, "shading.textureless": 0.4, "shading.albedo_until": 0.0,
           "distillation.guidance_convention": "dreamfusion", "distillation.clip_norm": 30.0,
           "loss.opacity": 0.5, "loss.entropy": 0.5, "loss.orientation": 3.0, "render.num_samples": 2,
           "render.block_points": 256}


def test_the_same_step(tiny, torch_step):
  work = workload.build(Text3DTask(tiny(CHANGES)))
  drawer, checked_step, first = step_draws.make_drawer(work), peer.make_checked_step(work), workload.first_state(work)
  modes = {}  # the first step of each mode
  for step in range(5, 19):
    draws = drawer(jnp.int32(step))
    modes.setdefault(int(draws.shading.mode), (in_the_middle(first, step), draws))
  assert set(modes) == {ALBEDO, LAMBERTIAN, TEXTURELESS}
  for mode, (start, draws) in modes.items():
    counts = parts.sample_counts(work, start, draws)
    assert counts["kept"] == counts["budget"] < counts["wanted"]  # both sides must leave out the same samples
    content = peer.payload(work, start, block=100 if mode == LAMBERTIAN else 0)
    step = quietly(lambda: torch_step.TorchStep(content))
    inputs, jax_result = peer.torch_inputs(work, int(start.step), draws), checked_step(start, draws)

    def compare(**changes):
      return peer.errors(jax_result, torch_step.check(step, inputs | changes), content["layers"])

    relative = compare()
    peer.check_errors(relative)
    if mode == TEXTURELESS:
      continue
    for changes in (dict(sds=1.02 * inputs["sds"]), dict(eps=inputs["eps"][::-1].copy()), dict(shaded=mode == ALBEDO)):
      with pytest.raises(peer.PeerError, match="relative error of the"):
        peer.check_errors(compare(**changes))
    assert compare() == pytest.approx(relative, rel=0.5, abs=1e-6)  # every turn starts from the same state
    assert len(torch_step.time_steps(step, [dict(inputs, step=6), dict(inputs, step=7)])) == 2
    updated = np.flatnonzero(step.grid.numpy() != content["grid"])
    assert 0 < updated.size <= 8**3 / 4 and np.all(updated % 4 == 6 // 2 % 4)  # of the two, only step 6 is due


@pytest.mark.parametrize("density, blob, activation", [("exp", "gaussian", "softplus"), ("softplus", "none", "relu")])
def test_other_fields(tiny, torch_step, density, blob, activation):
  from sds_jax.benchmarks import torch_render
  settings = tiny({
    "field.density": density, "field.blob": blob, "field.mlp.activation": activation, "field.density_bias": 0.3})
  generator = Text3DTask(settings).generator
  params = generator.field.init(jax.random.key(0))
  points = np.random.default_rng(0).uniform(-0.6, 0.6, (50, 3)).astype(np.float32)
  out, normals = with_normals(generator.field.apply, params, jnp.asarray(points))
  field = torch_render.TorchMLPField(
    peer.layers(params), torch_render.RendererSettings(**peer.render_settings(settings.field, generator, block=0)))
  torch_out = [array.detach().numpy() for array in field.with_normals(torch_step.torch.tensor(points))]
  for got, expected in zip(torch_out, (out.density, out.albedo, normals)):
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_relative_errors():
  pairs = [(np.ones((2, 2)), np.zeros(2))]
  expected = dict(image=np.full((1, 2, 2, 3), 0.5), gradient=pairs, layers=[(2 * pairs[0][0], pairs[0][1])])
  got = dict(image=expected["image"] + 0.05, gradient=[(1.5 * pairs[0][0], pairs[0][1])],
             layers=[(3 * pairs[0][0], pairs[0][1])])
  assert peer.errors(expected, got, pairs) == pytest.approx(dict(image=0.1, gradient=0.5, update=1.0))
  with pytest.raises(peer.PeerError, match="relative error of the image nan"):
    peer.check_errors(dict(image=float("nan"), gradient=0.0, update=0.0))


def test_unsupported_settings(tiny):
  with pytest.raises(peer.PeerError, match="config.field.name='hashgrid': the step in PyTorch has only 'mlp'"):
    peer.check_supported(workload.build(Text3DTask(tiny({"field.name": "hashgrid"})), allocate=False))
  peer.check_supported(workload.build(Text3DTask(tiny()), allocate=False))


def test_without_torch(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(peer.PeerError, match=r"--peer=torch needs torch and diffusers.*pip install 'sds_jax\[parity\]'"):
    peer.check_installed()
