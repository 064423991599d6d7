"""The command at a tiny size: its record is consistent, and mistakes end in one line."""
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from sds_jax.benchmarks import flops, parts, step_draws, table, timing, workload
from sds_jax.benchmarks import step as benchmark
from sds_jax.tasks import Text3DTask


@pytest.fixture
def command(prior_folder, tiny_changes, tmp_path):
  """The command line for the tiny settings."""
  return ["step", f"--prior={prior_folder}", f"--json={tmp_path / 'record.json'}", "--steps=3", "--warmup=1", "--at=9",
          "--repeats=2", "--rounds=1", "--matmul=64", "--config.shading.lambertian=0.0",
          *(f"--config.{name}={value}" for name, value in tiny_changes.items())]


def test_command(command, tmp_path, capsys):
  assert benchmark.main(command) == 0
  printed = capsys.readouterr().out
  record = json.loads((tmp_path / "record.json").read_text())
  assert record["compile"]["cold_s"] > record["compile"]["cached_s"] > 0 and record["compile"]["cache_hits"] >= 1
  assert record["peak_memory_bytes"] > 50e6 and record["xla_memory"]["temp"] > 0
  assert record["config"]["field"]["mlp"]["hidden"] == 8 and record["machine"]["versions"]["jax"]
  assert list(record["steps"]) == ["from step 1", "from step 9"]
  for times in record["steps"].values():
    assert times["as_drawn"]["count"] == 3 == times["albedo"]["count"]
    assert times["samples"]["kept"] <= times["samples"]["budget"] == 2 * 16 * 16 * 8
  measured = record["parts"]
  assert set(measured) == {"draws", "prior", "optimizer", "occupancy update", "render albedo, forward",
                        "render albedo, forward and backward"}
  # One share of 8^3 cells: products with 24 waves of 3 coordinates, and with 27 x 8, 8 x 8 and 8 x 4 weights.
  assert measured["occupancy update"]["flops"] == 2 * 8**3 / 4 * (3 * 24 + 27 * 8 + 8 * 8 + 8 * 4)
  assert table.step_flops(measured, "albedo") == (
    measured["render albedo, forward and backward"]["flops"] + measured["prior"]["flops"])
  assert table.step_flops(measured, "shaded") is None
  for words in ("compiling the step", "from step 9, as drawn", "render albedo, forward", "whole step", "prior"):
    assert words in printed


@pytest.mark.parametrize("arguments, message", [
  (["--peer=tensorflow"], "--peer=tensorflow is not legal: it must be 'torch'"),
  (["--steps=0"], "--steps, --repeats and --rounds must be at least 1"),
  (["--json=/nowhere/record.json"], "--json=/nowhere/record.json: there is no such folder"),
  (["--config.render.milestones=((0.5,24),)"], "milestones=((0.5, 24),) gives a run several kinds of steps"),
  (["--config.prompt=a hamburger"], "config.prompt='a hamburger'"),
  (["--prior=/nowhere"], "the prior '/nowhere' is neither a name"),
  (["--config.field.bound=7.0"], "config.field.bound=7.0 is not legal"),
  (["--config.field.bond=0.8"], "did you mean config.field.bound?"),
  (["--stepz=3"], "Unknown command line flag 'stepz'")])
def test_mistakes(command, capsys, arguments, message):
  assert benchmark.main([*command, *arguments]) == 2
  assert message in capsys.readouterr().err


def test_flops_of_rendering(tiny):
  work = workload.build(Text3DTask(tiny()))
  state = jax.eval_shape(lambda: workload.first_state(work))
  draws = jax.eval_shape(step_draws.make_drawer(work), jnp.int32(0))
  budget, waves, weights = 2 * 16 * 16 * 8, 3 * 24, 27 * 8 + 8 * 8 + 8 * 4

  @functools.cache  # each count traces the rendering
  def count(mode, part, share):
    rendering = parts.rendering_parts(parts.only_mode(work.generator, mode))[part]
    return flops.count(rendering, state.params, state.occupancy, draws, branch=flops.filled(share))

  forward = {mode: count(mode, "forward", 1.0) - count(mode, "forward", 0.0) for mode in ("albedo", "shaded")}
  assert forward["albedo"] == 2 * budget * (waves + weights)
  # The gradient of the density with respect to the points goes back through each layer once.
  assert 1.5 * forward["albedo"] < forward["shaded"] <= 2 * forward["albedo"]
  both = count("albedo", "forward and backward", 1.0) - count("albedo", "forward and backward", 0.0)
  # Forward, forward again (blocks are recomputed), and back to weights and inputs; points get no gradient.
  assert both == 2 * budget * (2 * waves + 4 * weights - 27 * 8)
  assert count("albedo", "forward", 0.5) == (count("albedo", "forward", 0.0) + count("albedo", "forward", 1.0)) / 2


def test_by_mode():
  times = workload.by_mode([dict(seconds=s, shaded=b) for s, b in ((1.0, False), (5.0, True), (2.0, False))])
  assert times["as_drawn"]["median_s"] == 2.0 and times["albedo"]["seconds"] == [1.0, 2.0]
  assert times["shaded"]["seconds"] == [5.0]


def test_summary():
  assert timing.summary([3.0, 1.0, 2.0, 6.0]) == dict(
    median_s=2.5, min_s=1.0, mean_s=3.0, count=4, seconds=[3.0, 1.0, 2.0, 6.0])
  assert timing.summary([])["median_s"] is None
