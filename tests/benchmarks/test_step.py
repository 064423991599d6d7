"""The command at a tiny size: what it writes is consistent, what it is asked wrongly it says."""
import json

import pytest

from sds_jax.benchmarks import step as benchmark
from sds_jax.benchmarks import table, timing


@pytest.fixture
def command(prior_folder, settings, tmp_path):
  """The command line for the tiny settings."""
  return ["step", f"--prior={prior_folder}", f"--json={tmp_path / 'record.json'}", "--steps=3", "--warmup=1", "--at=9",
          "--repeats=2", "--rounds=1", "--matmul=64", *(f"--config.{name}={value}" for name, value in settings.items())]


def test_command(command, quick_compile, tmp_path, capsys):
  assert benchmark.main(command) == 0
  printed = capsys.readouterr().out
  record = json.loads((tmp_path / "record.json").read_text())
  assert record["compile"]["cold_s"] > record["compile"]["cached_s"] > 0 and record["compile"]["cache_hits"] >= 1
  assert record["peak_memory_bytes"] > 50e6 and record["xla_memory"]["temp"] > 0
  assert record["config"]["field"]["mlp"]["hidden"] == 8 and record["machine"]["versions"]["jax"]
  assert list(record["steps"]) == ["from step 1", "from step 9"]
  for found in record["steps"].values():
    assert found["as_drawn"]["count"] == 3 == found["albedo"]["count"] + found["shaded"]["count"]
    assert found["samples"]["kept"] <= found["samples"]["budget"] == 2 * 16 * 16 * 8
    assert sorted(found["albedo"]["seconds"] + found["shaded"]["seconds"]) == sorted(found["as_drawn"]["seconds"])
  parts = record["parts"]
  assert set(parts) == {"draws", "prior", "optimizer", "occupancy update", "render albedo, forward",
                        "render albedo, forward and backward", "render shaded, forward",
                        "render shaded, forward and backward"}
  # One share of 8^3 cells, seen by 27 x 8, 8 x 8 and 8 x 4 weights.
  assert parts["occupancy update"]["flops"] == 2 * 8**3 / 4 * (27 * 8 + 8 * 8 + 8 * 4)
  assert parts["render albedo, forward"]["flops"] < parts["render shaded, forward"]["flops"]
  assert parts["render shaded, forward"]["flops"] < parts["render shaded, forward and backward"]["flops"]
  assert table.step_flops(parts, "shaded") == (
    parts["render shaded, forward and backward"]["flops"] + parts["prior"]["flops"])
  for words in ("compiling the step", "from step 9, as drawn", "render albedo, forward", "whole step", "prior"):
    assert words in printed


@pytest.mark.parametrize("arguments, message", [
  (["--peer=tensorflow"], "--peer=tensorflow is not legal: it must be 'torch'"),
  (["--steps=0"], "--steps, --repeats, --rounds and --matmul must be at least 1"),
  (["--prior=/nowhere"], "the prior '/nowhere' is neither a name"),
  (["--config.field.bound=7.0"], "config.field.bound=7.0 is not legal"),
  (["--stepz=3"], "Unknown command line flag 'stepz'")])
def test_mistakes(command, capsys, arguments, message):
  assert benchmark.main([*command, *arguments]) == 2
  assert message in capsys.readouterr().err


def test_summary():
  assert timing.summary([3.0, 1.0, 2.0, 6.0]) == dict(
    median_s=2.5, min_s=1.0, mean_s=3.0, count=4, seconds=[3.0, 1.0, 2.0, 6.0])
  assert timing.summary([])["median_s"] is None
