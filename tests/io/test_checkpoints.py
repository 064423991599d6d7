"""Checkpoints: bits come back on any devices, damage is never read, other structures are told apart from damage."""
import hashlib
import json
import os
import shutil
import threading
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sds_jax.io import checkpoints as checkpoints_lib
from sds_jax.io.checkpoints import Checkpoints, DamagedCheckpointError, SchemaError

ABOUT = dict(config=dict(prompt="a \u2028 c\u00fbbe\ud800", sizes=[1, 2]), note=None)


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: tuple
  extra: object = None


class Pair(NamedTuple):
  first: jax.Array
  second: object


def make_state(seed=0):
  rng = np.random.default_rng(seed)
  params = dict(w=jnp.asarray(rng.normal(size=(8, 6)), jnp.float32), half=jnp.asarray(rng.normal(size=5), jnp.bfloat16),
                nothing={}, none=None, hollow=jnp.zeros((0, 3), jnp.int8))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  odd = np.array([np.nan, -0.0, np.inf, 5e-324], np.float64)
  return State(step=jnp.int32(seed), params=params, opt_state=optimizer.init(params),
               extra=[Pair(jax.random.key(seed), None), jax.random.split(jax.random.key(seed, impl="rbg"), 3), odd,
                      np.array([True, False]), rng.normal(size=3).astype(ml_dtypes.float8_e4m3fn)])


def bits(tree):
  plain = [jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
           for leaf in jax.tree.leaves(tree)]
  return [(str(leaf.dtype), np.shape(leaf), np.asarray(leaf).tobytes()) for leaf in plain]


def write(folder, steps, **options):
  with Checkpoints(folder, **options) as there:
    for step in steps:
      there.save(step, make_state(step), dict(ABOUT, at=step))
  return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  return write(tmp_path_factory.mktemp("two") / "checkpoints", [3, 6])


@pytest.fixture
def copy(two, tmp_path):
  return shutil.copytree(two, tmp_path / "checkpoints")


def test_everything_comes_back(two):
  with Checkpoints(two) as there:
    back = there.restore(6, make_state(0))
    assert there.steps() == [3, 6] and there.latest() == 6 and there.about(6) == dict(ABOUT, at=6)
  assert jax.tree.structure(back) == jax.tree.structure(make_state(6))
  assert bits(back) == bits(make_state(6)) != bits(make_state(3))
  assert isinstance(back.extra[2], np.ndarray) and isinstance(back.params["w"], jax.Array)
  assert back.extra[1].dtype == make_state(0).extra[1].dtype


def test_the_record_holds_what_it_promises(two):
  record = json.loads((two / "6" / "record" / "record.json").read_text())
  state = make_state(6)
  leaf = record["leaves"]["params.w"]
  assert record["schema"] == 1 and record["step"] == 6 and record["written_by"]["jax"] == jax.__version__
  assert leaf["kind"] == "float32[8, 6]" and leaf["sha256"] == hashlib.sha256(
    np.asarray(state.params["w"]).tobytes()).hexdigest()
  assert len(record["leaves"]) == len(jax.tree.leaves(state))
  assert record["leaves"]["extra.0.first"]["kind"] == "key<fry>[]"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_of_devices(two, tmp_path, count):
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


def test_like_restores_what_is_there(two):
  with Checkpoints(two) as there:
    like = there.like(6)
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
    there.drop_after(20)
    assert there.steps() == [10, 20]
    there.save(25, dict(x=np.float32(26)), {})
    assert there.restore(25, dict(x=np.float32(0)))["x"] == 26
    there.clear()
    assert there.steps() == [] and there.latest() is None and there.newest(dict(x=np.float32(0))) is None
  assert os.listdir(tmp_path) == []


def test_looking_makes_nothing(tmp_path):
  with Checkpoints(tmp_path / "none") as there:
    assert there.latest() is None and there.newest({}) is None
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3; it has \[\]"):
      there.restore(3, {})
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("change, message", [
  (lambda s: s.replace(step=jnp.float32(0)), r"step is int32\[\] there, float32\[\] here; .* sds_jax 0.1.0, jax "),
  (lambda s: s.replace(params={**s.params, "w": jnp.zeros((6, 8))}), r"w is float32\[8, 6\] there, float32\[6, 8\]"),
  (lambda s: s.replace(params={**s.params, "new": jnp.zeros(1)}), r"new is absent there, float32\[1\] here"),
  (lambda s: s.replace(extra=None), r"extra.0.first is key<fry>\[\] there, absent here")])
def test_another_structure_is_no_damage(copy, capfd, change, message):
  with Checkpoints(copy) as there:
    with pytest.raises(SchemaError, match=message) as caught:
      there.newest(change(make_state(0)))
    assert "\n" not in str(caught.value) and there.steps() == [3, 6]
  assert capfd.readouterr().err == ""


def seal(record):
  body = {name: value for name, value in record.items() if name != "sha256"}
  return dict(body, sha256=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())


def test_another_schema_is_told(copy):
  path = copy / "6" / "record" / "record.json"
  record = json.loads(path.read_text())
  assert seal(record) == record
  path.write_text(json.dumps(seal({**record, "schema": 2, "written_by": {"sds_jax": "9.9"}})))
  with Checkpoints(copy) as there, pytest.raises(SchemaError, match="schema 2 and was written by sds_jax 9.9; this is"):
    there.newest(make_state(0))
  (copy / "6" / "default").mkdir()
  for name in ("state", "record"):
    shutil.rmtree(copy / "6" / name)
  with Checkpoints(copy) as there, pytest.raises(SchemaError, match="before there were any"):
    there.newest(make_state(0))


def lose_record(step):
  (step / "record" / "record.json").unlink()


def cut_record(step):
  path = step / "record" / "record.json"
  path.write_bytes(path.read_bytes()[:-1])


def lie_in_record(step):
  path = step / "record" / "record.json"
  path.write_text(path.read_text().replace('"step": 6', '"step": 7'))


def deep_record(step):
  (step / "record" / "record.json").write_text("[" * 100_000)


def other_step(step):
  shutil.rmtree(step)
  shutil.copytree(step.with_name("3"), step)


def other_state(step):
  shutil.rmtree(step / "state")
  shutil.copytree(step.with_name("3") / "state", step / "state")


def lose_arrays(step):
  shutil.rmtree(step / "state")


def lose_all(step):
  shutil.rmtree(step)
  step.mkdir()


@pytest.mark.parametrize("harm, reason", [
  (lose_record, "record.json cannot be read"), (cut_record, "cannot be read"), (lie_in_record, "json has changed"),
  (deep_record, "cannot be read"), (other_step, "record is of step 3"), (other_state, "has changed"),
  (lose_arrays, "arrays cannot be read"), (lose_all, "cannot be read")])
def test_damage_is_set_aside(copy, capfd, harm, reason):
  harm(copy / "6")
  with Checkpoints(copy) as there:
    assert there.latest() == 6
    with pytest.raises(DamagedCheckpointError, match=reason):
      there.restore(6, make_state(0))
    step, state = there.newest(make_state(0))
    assert step == 3 and bits(state) == bits(make_state(3)) and there.steps() == [3]
    said = capfd.readouterr().err
    assert said.startswith("warning: the checkpoint of step 6 in ") and said.count("\n") == 1
    assert str(copy / "damaged" / "6") in said
    there.save(6, make_state(66), {})  # the place is free again
    assert bits(there.newest(make_state(0))[1]) == bits(make_state(66)) and there.steps() == [3, 6]
    harm(copy / "6")
    assert there.newest(make_state(0))[0] == 3 and sorted(os.listdir(copy / "damaged")) == ["6", "6-2"]
  assert not issubclass(DamagedCheckpointError, ValueError)


def test_all_damaged_is_none(copy, capfd):
  for step in (3, 6):
    lose_record(copy / str(step))
  with Checkpoints(copy) as there:
    assert there.newest(make_state(0)) is None
  assert capfd.readouterr().err.count("warning: ") == 2


def test_accept(copy):
  with Checkpoints(copy) as there:
    assert there.newest(make_state(0), lambda about: about["at"] < 6)[0] == 3
    assert there.newest(make_state(0), lambda about: False) is None
    assert there.steps() == [3, 6]


def test_a_write_that_fails(tmp_path, monkeypatch, capfd):
  """The next save, or leaving, raises with the reason; nothing that looks finished is left, no thread complains."""
  threads = threading.active_count()
  write(tmp_path, [1])

  def fail(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: x: No space left on device [os_error_code=28]")

  with monkeypatch.context() as patch, pytest.raises(OSError, match="be written to .*: No space left on device$"):
    with Checkpoints(tmp_path) as there:
      patch.setattr("orbax.checkpoint.JsonCheckpointHandler.async_save", fail)
      there.save(2, make_state(2), {})
  assert threading.active_count() == threads and capfd.readouterr().err == ""
  with Checkpoints(tmp_path) as there:
    assert there.steps() == [1]
    there.save(2, make_state(2), {})
  assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_what_killed_writers_leave(copy):
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
