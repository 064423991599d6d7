"""The step in PyTorch gives the trainer's image, gradient and update; the check notices when it does not."""
import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sds_jax.benchmarks import peer, workload
from sds_jax.rendering.occupancy import Occupancy
from sds_jax.training import validation


@pytest.fixture(scope="module")
def torch_step():
  """`benchmarks.torch_step`, imported without the warnings of torch's and diffusers' own making."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for module in ("torch", "diffusers"):
      pytest.importorskip(module, reason="needs sds_jax[parity]", exc_type=ImportError)
    from sds_jax.benchmarks import torch_step as module
    return module


def in_the_middle(work, step=6):
  """A state as a run has it: Adam has moments, and the grid has empty cells."""
  state = workload.first_state(work)
  rng = np.random.default_rng(0)
  like = lambda tree, scale: jax.tree.map(  # noqa: E731
    lambda x: jnp.asarray(scale * (1 + np.abs(rng.normal(size=x.shape))), jnp.float32), tree)
  opt_state = optax.tree_utils.tree_set(state.opt_state, mu=like(state.params, 0.1), nu=like(state.params, 0.1),
                                        count=jnp.int32(step))
  density = jnp.asarray(rng.uniform(size=state.occupancy.density.shape) < 0.04, jnp.float32)
  return state.replace(step=jnp.int32(step), opt_state=opt_state, occupancy=Occupancy(density))


CASES = {
  "albedo": {"shading.lambertian": 0.0},
  "shaded": {"shading.lambertian": 1.0, "shading.albedo_until": 0.0, "loss.opacity": (0.5,), "loss.entropy": (0.5,),
             "distillation.guidance_convention": "dreamfusion", "distillation.clip_norm": 0.5},
  "textureless": {"shading.lambertian": 0.0, "shading.textureless": 1.0, "shading.albedo_until": 0.0,
                  "render.num_samples": 1, "field.density": "exp", "field.blob": "gaussian",
                  "loss.orientation": (3.0,)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_step(tiny, quick_compile, torch_step, case):
  work = workload.build(validation.validate(tiny(CASES[case])))
  state = in_the_middle(work)
  content = peer.payload(work, state, block=100 if case == "shaded" else 0)
  drawn = jax.jit(lambda step: workload.draw(work, step))
  given = peer.inputs(work, int(state.step), drawn)
  assert given["shaded"] == (case != "albedo") and given["textureless"] == (case == "textureless")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = torch_step.TorchStep(content)
  ours = peer.ours(work, state)
  found = peer.errors(ours, torch_step.check(theirs, given), content["layers"])
  peer.check_errors(found)
  wrong = dict(given, guidance=1.02 * given["guidance"])
  with pytest.raises(peer.PeerError, match="relative error of the gradient"):
    peer.check_errors(peer.errors(ours, torch_step.check(theirs, wrong), content["layers"]))
  seconds = torch_step.time_steps(theirs, [given, dict(given, step=8)])
  assert len(seconds) == 2 and min(seconds) > 0
  changed = np.any(theirs.grid.numpy() != content["grid"])
  assert changed  # step 8 looks at a share of the cells
  again = peer.errors(ours, torch_step.check(theirs, given), content["layers"])
  assert again == pytest.approx(found, rel=0.5, abs=1e-7)  # every turn starts from the same state


def test_relative_errors():
  pairs = [(np.ones((2, 2)), np.zeros(2))]
  ours = dict(image=np.full((1, 2, 2, 3), 0.5), gradient=pairs, layers=[(2 * pairs[0][0], pairs[0][1])])
  theirs = dict(image=ours["image"] + 0.05, gradient=[(1.5 * pairs[0][0], pairs[0][1])],
                layers=[(3 * pairs[0][0], pairs[0][1])])
  assert peer.errors(ours, theirs, pairs) == pytest.approx(dict(image=0.1, gradient=0.5, update=1.0))
  with pytest.raises(peer.PeerError, match="relative error of the image nan"):
    peer.check_errors(dict(image=float("nan"), gradient=0.0, update=0.0))


def test_what_it_cannot_do(tiny):
  with pytest.raises(peer.PeerError, match="config.field.name='hashgrid': the step in PyTorch only knows 'mlp'"):
    peer.check_supported(validation.validate(tiny({"field.name": "hashgrid"})))
  peer.check_supported(validation.validate(tiny()))


def test_without_torch(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(peer.PeerError, match=r"--peer=torch needs torch and diffusers.*pip install 'sds_jax\[parity\]'"):
    peer.check_installed()
