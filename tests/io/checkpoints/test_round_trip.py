"""Checkpoints: every bit comes back, on any devices; the newest stay; what cannot be written says so."""
import hashlib
import json
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sds_jax.io import checkpoints as checkpoints_lib
from sds_jax.io.checkpoints import Checkpoints, SchemaError


def test_everything_comes_back(two, make_state, bits):
  with Checkpoints(two) as there:
    back = there.restore(6, make_state(0))
    assert there.steps() == [3, 6] and there.latest_step() == 6 and there.metadata(6)["at"] == 6
    assert there.metadata(6) == dict(at=6, prompt="a \u2028 c\u00fbbe\ud800", sizes=[1, 2], note=None)
  assert jax.tree.structure(back) == jax.tree.structure(make_state(6))
  assert bits(back) == bits(make_state(6)) != bits(make_state(3))
  assert isinstance(back.extra[2], np.ndarray) and isinstance(back.params["w"], jax.Array)
  assert back.extra[1].dtype == make_state(0).extra[1].dtype


def test_the_record_holds_what_it_promises(two, make_state):
  record = json.loads((two / "6" / "record" / "record.json").read_text())
  state = make_state(6)
  leaf = record["leaves"]["params.w"]
  assert record["schema"] == 1 and record["step"] == 6 and record["written_by"]["jax"] == jax.__version__
  assert leaf["kind"] == "float32[8, 6]" and leaf["sha256"] == hashlib.sha256(
    np.asarray(state.params["w"]).tobytes()).hexdigest()
  assert len(record["leaves"]) == len(jax.tree.leaves(state))
  assert record["leaves"]["extra.0.first"]["kind"] == "key<fry>[]"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_of_devices(two, tmp_path, count, make_state, bits):
  """Saved from one device and restored on some; saved from those and restored on one."""
  mesh = Mesh(np.array(jax.devices()[:count]), ("x",))

  def struct(leaf):
    split = leaf.ndim == 2 and leaf.shape[0] % count == 0
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                sharding=NamedSharding(mesh, PartitionSpec("x") if split else PartitionSpec()))

  state = make_state(6)
  state = state.replace(extra=state.extra[:2])
  with Checkpoints(tmp_path / "one") as there:
    there.save(1, state, {})
    spread = there.restore(1, jax.tree.map(struct, state))
  assert len(spread.params["w"].addressable_shards) == len(spread.extra[0].first.sharding.device_set) == count
  assert spread.params["w"].addressable_shards[0].data.shape == (8 // count, 6)
  with Checkpoints(tmp_path / "spread") as there:
    there.save(1, spread, {})
    assert bits(there.restore(1, state)) == bits(spread) == bits(state)


def test_like_restores_what_is_there(two, make_state, bits):
  with Checkpoints(two) as there:
    like = there.abstract_state(6)
    back = there.restore(6, like)
  assert back["params"].keys() == {"w", "half", "hollow"} and like["params"]["half"].dtype == jnp.bfloat16
  assert sorted(bits(back)) == sorted(bits(make_state(6)))
  assert back["opt_state"]["1"]["0"]["mu"]["w"].devices() == {jax.devices()[0]}
  assert isinstance(back["extra"]["2"], np.ndarray) and back["extra"]["2"].dtype == np.float64


def test_nothing_is_rounded_on_the_way(tmp_path):
  """Without x64 JAX would take float64 as float32, and say nothing."""
  with Checkpoints(tmp_path) as there:
    there.save(1, dict(x=np.ones(2, np.float64)), {})
    with pytest.raises(SchemaError, match="float64 is wanted in JAX's arrays, which takes jax_enable_x64"):
      there.restore(1, dict(x=jax.ShapeDtypeStruct((2,), np.float64)))


def test_a_saved_state_may_be_donated(tmp_path):
  """The file has the values of the moment of the save, whatever happens to their memory afterwards."""
  step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
  x = jnp.zeros(300_000)
  with Checkpoints(tmp_path) as there:
    there.save(1, dict(x=x), {})
    for _ in range(5):
      x = step(x)
    assert not np.asarray(there.restore(1, dict(x=x))["x"]).any()


def test_retention(tmp_path):
  with Checkpoints(tmp_path, keep=2, keep_period=10) as there:
    for step in range(5, 35, 5):
      there.save(step, dict(x=np.float32(step)), {})
    assert there.steps() == [10, 20, 25, 30]
    there.save(20, dict(x=np.float32(-1)), {})  # there already
    assert there.restore(20, dict(x=np.float32(0)))["x"] == 20
    there.delete_after(20)
    assert there.steps() == [10, 20]
    there.save(25, dict(x=np.float32(26)), {})
    assert there.restore(25, dict(x=np.float32(0)))["x"] == 26
    there.clear()
    assert there.steps() == [] and there.latest_step() is None and there.restore_newest(dict(x=np.float32(0))) is None
  assert os.listdir(tmp_path) == []


def test_looking_makes_nothing(tmp_path):
  with Checkpoints(tmp_path / "none") as there:
    assert there.latest_step() is None and there.restore_newest({}) is None
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3; it has \[\]"):
      there.restore(3, {})
  assert not (tmp_path / "none").exists()


def test_a_write_that_fails(tmp_path, monkeypatch, capfd, make_state):
  """The next save, or leaving, raises with the reason; nothing that looks finished is left, no thread complains."""
  with Checkpoints(tmp_path) as there:
    there.save(1, make_state(1), {})

  def fail(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: x: No space left on device [os_error_code=28]")

  with monkeypatch.context() as patch, pytest.raises(OSError, match="be written to .*: No space left on device$"):
    with Checkpoints(tmp_path) as there:
      patch.setattr("orbax.checkpoint.JsonCheckpointHandler.async_save", fail)
      there.save(2, make_state(2), {})
  assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]
  assert capfd.readouterr().err == "" and os.listdir(tmp_path) == ["1"]
  with Checkpoints(tmp_path) as there:
    assert there.steps() == [1]
    there.save(2, make_state(2), {})
  assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_what_killed_writers_leave(copy, make_state):
  (copy / "9.orbax-checkpoint-tmp").mkdir()
  (copy / ".deleted-2").mkdir()
  with Checkpoints(copy) as there:
    assert there.steps() == [3, 6]
    there.save(9, make_state(9), {})
  assert sorted(os.listdir(copy)) == ["6", "9"]


@pytest.mark.parametrize("state, about, error", [
  ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, {}, "two leaves of the state are called 'a.b'"),
  (np.ones(1), {}, "bare"),
  ({"a": np.array(["x"])}, {}, "holds numbers"), ({"a": np.ones(1)}, {"x": object()}, "not JSON serializable")])
def test_mistakes_show_at_once(tmp_path, state, about, error):
  with Checkpoints(tmp_path / "none") as there, pytest.raises((ValueError, TypeError), match=error):
    there.save(1, state, about)
  assert not (tmp_path / "none").exists()


def test_superseded():
  assert checkpoints_lib._superseded([1, 2, 3, 4], 1, 2) == [1, 3]
  assert checkpoints_lib._superseded([1, 2, 3, 4], 2, 0) == [1, 2] and checkpoints_lib._superseded([1], 2, 0) == []
