"""Checkpoints restore every bit on any devices, keep the newest steps, and report failed writes."""
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


def test_every_bit_is_restored(two, make_state, bits):
  with Checkpoints(two) as checkpoints:
    back = checkpoints.restore(6, make_state(0))
    assert checkpoints.steps() == [3, 6] and checkpoints.latest_step() == 6 and checkpoints.metadata(6)["at"] == 6
    assert checkpoints.metadata(6) == dict(at=6, prompt="a \u2028 c\u00fbbe\ud800", sizes=[1, 2], note=None)
  assert jax.tree.structure(back) == jax.tree.structure(make_state(6))
  assert bits(back) == bits(make_state(6)) != bits(make_state(3))
  assert isinstance(back.extra[2], np.ndarray) and isinstance(back.params["w"], jax.Array)
  assert back.extra[1].dtype == make_state(0).extra[1].dtype


def test_the_record_has_digests_and_versions(two, make_state):
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
  """Saves from a single device and restores on several, and the reverse."""
  mesh = Mesh(np.array(jax.devices()[:count]), ("x",))

  def struct(leaf):
    split = leaf.ndim == 2 and leaf.shape[0] % count == 0
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                sharding=NamedSharding(mesh, PartitionSpec("x") if split else PartitionSpec()))

  state = make_state(6)
  state = state.replace(extra=state.extra[:2])
  with Checkpoints(tmp_path / "one") as checkpoints:
    checkpoints.save(1, state, {})
    spread = checkpoints.restore(1, jax.tree.map(struct, state))
  assert len(spread.params["w"].addressable_shards) == len(spread.extra[0].first.sharding.device_set) == count
  assert spread.params["w"].addressable_shards[0].data.shape == (8 // count, 6)
  with Checkpoints(tmp_path / "spread") as checkpoints:
    checkpoints.save(1, spread, {})
    assert bits(checkpoints.restore(1, state)) == bits(spread) == bits(state)


def test_abstract_state_restores_the_whole_checkpoint(two, make_state, bits):
  with Checkpoints(two) as checkpoints:
    like = checkpoints.abstract_state(6)
    back = checkpoints.restore(6, like)
  assert back["params"].keys() == {"w", "half", "hollow"} and like["params"]["half"].dtype == jnp.bfloat16
  assert sorted(bits(back)) == sorted(bits(make_state(6)))
  assert back["opt_state"]["1"]["0"]["mu"]["w"].devices() == {jax.devices()[0]}
  assert isinstance(back["extra"]["2"], np.ndarray) and back["extra"]["2"].dtype == np.float64


def test_wide_dtypes_are_never_rounded(tmp_path):
  """Checks float64, which JAX without x64 would silently round to float32."""
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, dict(x=np.ones(2, np.float64)), {})
    with pytest.raises(SchemaError, match="float64 is wanted in JAX's arrays, which takes jax_enable_x64"):
      checkpoints.restore(1, dict(x=jax.ShapeDtypeStruct((2,), np.float64)))


def test_a_saved_state_may_be_donated(tmp_path):
  """Donates the state's memory right after the save; the file keeps the saved values."""
  step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
  x = jnp.zeros(300_000)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, dict(x=x), {})
    for _ in range(5):
      x = step(x)
    assert not np.asarray(checkpoints.restore(1, dict(x=x))["x"]).any()


def test_old_checkpoints_are_deleted(tmp_path):
  with Checkpoints(tmp_path, keep=2, keep_period=10) as checkpoints:
    for step in range(5, 35, 5):
      checkpoints.save(step, dict(x=np.float32(step)), {})
    assert checkpoints.steps() == [10, 20, 25, 30]
    checkpoints.save(20, dict(x=np.float32(-1)), {})  # step 20 exists: ignored
    assert checkpoints.restore(20, dict(x=np.float32(0)))["x"] == 20
    checkpoints.delete_after(20)
    assert checkpoints.steps() == [10, 20]
    checkpoints.save(25, dict(x=np.float32(26)), {})
    assert checkpoints.restore(25, dict(x=np.float32(0)))["x"] == 26
    checkpoints.clear()
    assert checkpoints.steps() == [] and checkpoints.latest_step() is None
    assert checkpoints.restore_newest(dict(x=np.float32(0))) is None
  assert os.listdir(tmp_path) == []


def test_reading_creates_no_folder(tmp_path):
  with Checkpoints(tmp_path / "none") as checkpoints:
    assert checkpoints.latest_step() is None and checkpoints.restore_newest({}) is None
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3; it has \[\]"):
      checkpoints.restore(3, {})
  assert not (tmp_path / "none").exists()


def test_a_failed_write_raises(tmp_path, monkeypatch, capfd, make_state):
  """Checks the reason in the next save or at the end, no half checkpoint, and no message of a thread."""
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1), {})

  def fail(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: x: No space left on device [os_error_code=28]")

  with monkeypatch.context() as patch, pytest.raises(OSError, match="be written to .*: No space left on device$"):
    with Checkpoints(tmp_path) as checkpoints:
      patch.setattr("orbax.checkpoint.JsonCheckpointHandler.async_save", fail)
      checkpoints.save(2, make_state(2), {})
  assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]
  assert capfd.readouterr().err == "" and os.listdir(tmp_path) == ["1"]
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [1]
    checkpoints.save(2, make_state(2), {})
  assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_leftovers_of_killed_writers_are_removed(copy, make_state):
  (copy / "9.orbax-checkpoint-tmp").mkdir()
  (copy / ".deleted-2").mkdir()
  with Checkpoints(copy) as checkpoints:
    assert checkpoints.steps() == [3, 6]
    checkpoints.save(9, make_state(9), {})
  assert sorted(os.listdir(copy)) == ["6", "9"]


@pytest.mark.parametrize("state, about, error", [
  ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, {}, "two leaves of the state are called 'a.b'"),
  (np.ones(1), {}, "bare"),
  ({"a": np.array(["x"])}, {}, "holds numbers"), ({"a": np.ones(1)}, {"x": object()}, "not JSON serializable")])
def test_invalid_states_raise_at_once(tmp_path, state, about, error):
  with Checkpoints(tmp_path / "none") as checkpoints, pytest.raises((ValueError, TypeError), match=error):
    checkpoints.save(1, state, about)
  assert not (tmp_path / "none").exists()


def test_superseded():
  assert checkpoints_lib._superseded([1, 2, 3, 4], 1, 2) == [1, 3]
  assert checkpoints_lib._superseded([1, 2, 3, 4], 2, 0) == [1, 2] and checkpoints_lib._superseded([1], 2, 0) == []
