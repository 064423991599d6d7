"""Tests the guidance sheet: its contents, its file, and that a run with sheets ends in equal bits."""
import dataclasses

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sds_jax.diffusion.schedules import add_noise
from sds_jax.generators.protocol import Draws
from sds_jax.training import inspect_guidance
from sds_jax.training.keys import step_keys
from sds_jax.training.step import Context


@pytest.fixture(scope="module")
def runs(make_task, train, linear_prior, tmp_path_factory):
  """Returns (folder, final state, names of compiled functions) of a run without and a run with sheets."""
  def run(every):
    folder, compiled = tmp_path_factory.mktemp(f"every_{every}"), []
    listen = lambda event, seconds, **facts: compiled.append(facts["fun_name"]) if event.endswith(  # noqa: E731
      "backend_compile_duration") else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
      state = jax.device_get(train(
          make_task({"training.guidance_every": every}), folder, *linear_prior, anew=True).state)
    finally:
      jax.monitoring.unregister_event_duration_listener(listen)
    return folder, state, compiled

  return run(0), run(1)


def test_sheets_leave_the_result_bit_identical(runs):
  (_, without, _), (_, with_sheets, _) = runs
  assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(without)] == [
    np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(with_sheets)]


def test_step_and_sheet_are_compiled_before_the_loop(runs):
  _, (_, _, compiled) = runs
  assert [sum(part in name for name in compiled) for part in ("step", "inspect_guidance")] == [1, 1]
  assert "inspect_guidance" in compiled[-1]


def test_files_of_sheets(runs):
  (bare, _, _), (folder, _, _) = runs
  assert not (bare / "progress").exists()
  assert sorted(path.name for path in (folder / "progress").iterdir()) == [f"guidance_{s:06d}.png" for s in (1, 2, 3)]
  for path in (folder / "progress").iterdir():
    with Image.open(path) as sheet:
      width, height = sheet.size
    assert height == 20 + 2 * 96 + 2  # titles, then the 2 views, 16 pixels as 96
    assert 4 * 96 + 3 * 2 + 40 < width < 4 * 96 + 3 * 2 + 200


@pytest.fixture(scope="module")
def inspected(ready, prior_and_params):
  """Returns an inspection before a step, and the inputs of the network in that step."""
  task, _, (state, prior_params, text, key) = ready()
  prior, asked = prior_and_params[0], {}

  def spy(params, z, t, cond):
    asked.update(z=z[::2], t=t[::2])
    return jnp.zeros_like(z)

  spied = dataclasses.replace(prior, denoise=spy)

  @jax.jit
  def both(state, prior_params, text, key):
    term = task.distillation_term(spied, task.stages[0])
    sheet = inspect_guidance.make_inspection(term, 4)(state, prior_params, text, key)
    expected, draws = dict(asked), Draws(step_keys(key, state.step), jnp.arange(2), jnp.float32(0.25))
    views = term.generator.render(state.params, state.occupancy, draws)
    _, aux, x = term.distil(views, Context(state.params, state, {}, prior_params, text, draws))
    return sheet, expected, views.images, add_noise(prior.schedule, x, aux.eps, aux.t)

  state = state.replace(step=jnp.int32(1))  # of 4
  return prior, *both(state, prior_params, text, key)


def test_a_sheet_shows_the_networks_inputs(inspected):
  prior, sheet, asked, rgb, noisy = inspected
  small = {name: np.asarray(sheet[name])[:, ::6, ::6] for name in inspect_guidance.COLUMNS}
  assert all(image.shape == (2, 16, 16, 3) for image in small.values())
  for name in small:  # each pixel of the prior is a block of 6x6 in the sheet
    np.testing.assert_array_equal(np.asarray(sheet[name]).reshape(2, 16, 6, 16, 6, 3),
                                  np.broadcast_to(small[name][:, :, None, :, None], (2, 16, 6, 16, 6, 3)))
  np.testing.assert_array_equal(sheet["t"], asked["t"])
  np.testing.assert_allclose(small["render"], rgb, atol=1e-6)
  np.testing.assert_allclose(small["decoded"], np.clip(rgb, 0.0, 1.0), atol=1e-5)
  np.testing.assert_allclose(small["noisy"], prior.decode(None, asked["z"]), atol=1e-5)
  alpha = np.asarray(prior.schedule.alpha)[np.asarray(asked["t"])]
  x0 = np.asarray(asked["z"]) / alpha[:, None, None, None]  # the one-step estimate under zero noise
  np.testing.assert_allclose(small["x0"], prior.decode(None, jnp.asarray(x0)), atol=1e-4)
  np.testing.assert_allclose(noisy, asked["z"], atol=1e-5)
  assert float(sheet["scale"]) == 3.0 and np.ptp(small["noisy"]) > 0.5


def test_no_more_than_four_views(ready, prior_and_params):
  task, _, args = ready({"training.views": 5})
  term = task.distillation_term(prior_and_params[0], task.stages[0])
  sheet = jax.eval_shape(inspect_guidance.make_inspection(term, 4), *args)
  assert {name: leaf.shape for name, leaf in sheet.items()} == {
    **dict.fromkeys(inspect_guidance.COLUMNS, (4, 96, 96, 3)), "t": (4,), "scale": ()}


@pytest.mark.parametrize("calls", [1, 2])
def test_a_sheet_that_cannot_be_written_is_an_error(ready, prior_and_params, tmp_path, monkeypatch, calls):
  """Checks that the error is raised at the next sheet, or at the end."""
  def full(*args):
    raise OSError("No space left on device")

  task, _, (state, *fixed) = ready({"training.guidance_every": 1})
  monkeypatch.setattr(inspect_guidance, "write_sheet", full)
  monkeypatch.setattr(inspect_guidance, "make_inspection", lambda term, steps: lambda *args: jnp.zeros(()))
  with pytest.raises(OSError, match="No space left"):
    with task.sheets(prior_and_params[0])(tmp_path, state, tuple(fixed)) as draw:
      for step in range(calls):
        draw(state, step)
      assert calls == 1
