"""The collectives in a program's text, the cost of a ring, and both in the record."""
import json
import pathlib

import pytest

import sds_jax
from sds_jax.benchmarks import scaling
from sds_jax.benchmarks.collectives import collectives

RECORDS = pathlib.Path(sds_jax.__file__).parent / "benchmarks" / "records"

PROGRAM = """
  %psum.7 = f32[37,2]{1,0} all-reduce(%fusion), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %two = (f32[3]{0}, bf16[4]{0}) all-reduce(%a, %b), channel_id=2
  %g = s32[8]{0} all-gather-start(%param.1), channel_id=3
  %d = s32[8]{0} all-gather-done(%g)
  %fusion.all-reduce = f32[100]{0} fusion(%x), metadata={op_name="jit(step)/all-reduce"}
"""


def test_collectives_of_a_program():
  assert [tuple(entry) for entry in collectives(PROGRAM)] == [
      ("all-reduce", 4 * 74), ("all-reduce", 4 * 3 + 2 * 4), ("all-gather", 4 * 8)]


def test_a_ring_by_hand():
  """Two chips exchange half of the bytes twice; each of many chips sends almost twice the bytes."""
  place = scaling.Slice("two", 2, 1e12, 1e9, 1e-6)
  assert scaling.all_reduce_seconds(1e6, place) == pytest.approx(1e-3 + 2e-6)
  many = place._replace(chips=1001)
  assert scaling.all_reduce_seconds(1e6, many) == pytest.approx(2 * 1000 / 1001 * 1e-3 + 2000e-6)
  assert scaling.efficiency(1e6, scaling.MFU * 1e12 * 1.002e-3, place) == pytest.approx(0.5)


def test_a_step_sends_one_all_reduce_of_the_gradient():
  record = json.loads((RECORDS / "scaling.json").read_text(encoding="utf-8"))
  (sent,), row = record["measured"]["sent"], record["predicted"][0]
  assert row["workload"] == "shapeworld" and sent["kind"] == "all-reduce"
  assert row["gradient_bytes"] <= sent["bytes"] <= row["gradient_bytes"] + 4 * 20  # and some metrics
