"""Tests the sets of captions and their table."""

import pytest

from sds_jax.evaluation import shapeworld
from sds_jax.shapeworld import captions


def test_captions_are_distinct_balanced_and_deterministic():
  specs = shapeworld.draw_captions(120)
  assert len(set(specs)) == 120 and specs == shapeworld.draw_captions(120) != shapeworld.draw_captions(120, seed=2)
  first = specs[:8]
  assert [len(spec.parts) for spec in first] == [1, 2] * 4
  assert [captions.is_held_out(spec) for spec in first] == [False, False, True, True] * 2


def test_too_many_captions_are_an_error():
  with pytest.raises(ValueError, match="exceeds the number of captions"):
    shapeworld.draw_captions(10**6)


@pytest.mark.parametrize("arguments, message", [
  (["--prompts=100000"], "exceeds the number of captions"),
  (["--config.render.height=-1"], "config.render.height=-1"),
  (["--config.prior.path=/nowhere"], "/nowhere")])
def test_mistakes_are_one_line(call_main, arguments, message, tmp_path):
  status, _, err = call_main(shapeworld.main, "shapeworld", f"--out={tmp_path / 'o'}", *arguments)
  assert status == 2 and "Traceback" not in err, err
  assert message in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")


def test_table_has_means_and_worst_cases():
  record = dict(prompt="a red cube", seed=0, parts=1, never_seen=False, plain=True, seconds=3.0, silhouette_iou=0.8,
                silhouette_iou_scaled=0.9, volume_iou=0.7, colours_right=True, colour_error=0.1, empty=False,
                full=False)
  fronted = [dict(record, plain=False, false_fronts=share) for share in (0.2, 0.4)]
  assert "| 30% |" in shapeworld.table(fronted) and "| – |" in shapeworld.table([record, *fronted])
  meshed = dict(record, chamfer=0.0123, normal_error_deg=9.87, volume_error=-0.05, below_base=0.0214)
  assert "| 1.23% | 9.9° | -5% | 0.021 |" in shapeworld.table([meshed, record])
  other = dict(record, silhouette_iou=0.4, colours_right=False, parts=2, full=True)
  rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
          for line in shapeworld.table([record, other]).splitlines()[2:]}
  assert rows["all"][:4] == ["2", "0.600", "0.400", "50%"] and rows["all"][6:] == ["50%", "0.100", "1", "3"]
  assert rows["single"][1] == "0.800" and rows["stacked"][1] == "0.400" and "never seen" not in rows
