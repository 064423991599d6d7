"""Tests many prompts at once: files of prompts, and scenes equal to separate runs."""
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings as settings_lib
from sds_jax.schema import ConfigError
from sds_jax.tasks import ScenesTask
from sds_jax.training import layout as layout_lib, loop, resume, scenes as scenes_lib
from sds_jax.views import prompts as views_lib

PROMPTS = ("a red cube", "a blue sphere", "a green torus")
SETTINGS = {"training.steps": 6, "training.log_every": 3, "training.checkpoint_every": 3, "divergence.patience": 2,
            "divergence.restarts": 1}


@pytest.fixture(scope="session")
def prior_and_params(linear_prior):
  """The linear prior with predictions that are NaN for some texts, `bad` of its parameters, at first for none."""
  prior, params = linear_prior

  def denoise(params, z, t, cond):
    is_bad = jnp.any(jnp.all(jnp.abs(cond["text"][:, None] - params["bad"][None]) < 1e-4, axis=(2, 3)))
    return jnp.where(is_bad, jnp.nan, prior.denoise(params, z, t, cond))

  none = jnp.full_like(texts(prior, PROMPTS[0]), jnp.inf)
  return dataclasses.replace(prior, denoise=denoise), dict(params, bad=none)


def texts(prior, prompt):
  """Embeds a prompt from every direction."""
  return prior.embed([f"{prompt}, {view} view" for view in views_lib.VIEWS])["text"]


@pytest.fixture(scope="module")
def run(tiny_config, prior_and_params, compiled_once):
  """Returns a function (folder, changes, parameters, prompts) -> `RunResult` of three prompts on two devices."""
  prior, params = prior_and_params

  def of(folder, changes=None, params=params, prompts=PROMPTS):
    task = ScenesTask(settings_lib.validate(tiny_config({
        "parallel.devices": 2, "prompts_file": "prompts.txt", **SETTINGS, **(changes or {})})))
    task.scenes = scenes_lib.make_scenes(prompts, 0)
    layout = layout_lib.make_scene_layout(task.settings.parallel, len(prompts))
    with compiled_once(task, prior, task.program(prior)) as program:
      return loop.train(task.settings, folder, prior, layout.put_prior(params), program, layout)

  return of


@pytest.fixture(scope="module")
def together(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("scenes")
  return folder, run(folder)


def close(a, b, rtol=1e-5):
  for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(np.abs(y).max(), 1e-12))


def test_a_scene_equals_a_separate_run(together, make_task, train, prior_and_params, tmp_path):
  folder, progress = together
  # The second device's scene, behind the first device's two.
  alone = train(make_task({**SETTINGS, "prompt": PROMPTS[2]}), tmp_path, *prior_and_params).state
  close(scenes_lib.pick(progress.state, 2).params, jax.device_get(alone.params))
  a, b = (jax.tree.leaves(scenes_lib.pick(progress.state, number).params) for number in (0, 1))
  assert any(not np.allclose(x, y) for x, y in zip(a, b))  # scenes differ


def test_each_scene_has_its_metrics(together):
  folder, progress = together
  assert progress.given_up == ()
  for name in ("a-red-cube-0", "a-blue-sphere-0", "a-green-torus-0"):
    assert len((folder / name / "metrics.jsonl").read_text().splitlines()) == 2
  assert not (folder / "metrics.jsonl").exists()


def test_scenes_under_vmap_equal_separate_runs(together, run, tmp_path):
  """Checks blocks and a smaller sample budget, whose branches depend on the scene."""
  branches = {"render.block_points": -1, "parallel.together": 0}
  close(run(tmp_path, branches).state.params, together[1].state.params)


def test_a_diverging_scene_does_not_stop_the_others(together, run, prior_and_params, tmp_path, capsys):
  prior, params = prior_and_params
  well, ill = together[1], run(tmp_path, {"training.log_every": 2}, dict(params, bad=texts(prior, PROMPTS[1])))
  assert well.given_up == () and ill.given_up == (1,)
  for number in (0, 2):
    close(scenes_lib.pick(ill.state, number).params, scenes_lib.pick(well.state, number).params, 1e-6)
  lost = scenes_lib.pick(ill.state, 1)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lost.params)) and lost.health["dropped"] == 6
  assert "a-blue-sphere-0 is given up at step 4; the other scenes continue" in capsys.readouterr().out


def test_a_run_does_not_continue_with_another_list(together, run, tmp_path, capsys):
  with pytest.raises(resume.ResumeError, match="config.prompts_file='prompts.txt' differ from .*resume=never"):
    run(together[0], prompts=(*PROMPTS[:2], "a red torus"))
  # With the same list it does, on any number of devices.
  shutil.copytree(together[0], tmp_path / "copy")
  shutil.rmtree(tmp_path / "copy" / "checkpoints" / "6")
  again = run(tmp_path / "copy", {"parallel.devices": 3})
  close(again.state.params, together[1].state.params)
  assert int(again.state.step) == 6 and "going on from step 3" in capsys.readouterr().out


@pytest.mark.parametrize("text, words", [(b"", "0 prompts"), (b"\n \n", "0 prompts"), (b"\xff\xfe", "UTF-8"),
                                         (b"a" * 10_001, "10001 characters")])
def test_illegal_files_of_prompts(tmp_path, text, words):
  (tmp_path / "prompts.txt").write_bytes(text)
  with pytest.raises(ConfigError, match=words) as caught:
    scenes_lib.read_prompts(str(tmp_path / "prompts.txt"))
  assert "config.prompts_file=" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_of_prompts():
  with pytest.raises(ConfigError, match="config.prompts_file='none.txt' is not a file"):
    scenes_lib.read_prompts("none.txt")


def test_folders_have_different_names(tmp_path):
  (tmp_path / "prompts.txt").write_text("a red cube\n\n  A red cube \na red cube\n../../etc\n", encoding="utf-8")
  prompts = scenes_lib.read_prompts(str(tmp_path / "prompts.txt"))
  scenes = scenes_lib.make_scenes(prompts, 3)
  assert scenes.folders == ("a-red-cube-3", "a-red-cube-3-2", "a-red-cube-3-3", "etc-3")


@pytest.mark.parametrize("changes", [{"parallel.mode": "pmap"}, {"training.guidance_every": 2},
                                     {"parallel.shard_prior": True}], ids=str)
def test_settings_that_exclude_many_scenes(tiny_config, changes):
  (name, value), = changes.items()
  with pytest.raises(ConfigError, match=f"config.{name}={value!r} is for one object"):
    settings_lib.validate(tiny_config({"prompts_file": "prompts.txt", **changes}))
