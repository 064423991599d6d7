"""Damaged checkpoints are never read and moved aside; other structures and schemas are no damage."""
import hashlib
import json
import os
import shutil

import jax.numpy as jnp
import pytest

from sds_jax.io.checkpoints import Checkpoints, DamagedCheckpointError, SchemaError


@pytest.mark.parametrize("change, message", [
  (lambda s: s.replace(step=jnp.float32(0)),
   r"step is int32\[\] in the checkpoint and float32\[\] in the run; .* sds_jax 0.1.0, jax "),
  (lambda s: s.replace(params={**s.params, "w": jnp.zeros((6, 8))}),
   r"w is float32\[8, 6\] in the checkpoint and float32\[6, 8\]"),
  (lambda s: s.replace(params={**s.params, "new": jnp.zeros(1)}),
   r"new is absent in the checkpoint and float32\[1\] in the run"),
  (lambda s: s.replace(extra=None), r"extra.0.first is key<fry>\[\] in the checkpoint and absent in the run")])
def test_another_structure_is_no_damage(copy, capfd, change, message, make_state):
  with Checkpoints(copy) as checkpoints:
    with pytest.raises(SchemaError, match=message) as caught:
      checkpoints.restore_newest(change(make_state(0)))
    assert "\n" not in str(caught.value) and checkpoints.steps() == [3, 6]
  assert capfd.readouterr().err == ""


def seal(record):
  body = {name: value for name, value in record.items() if name != "sha256"}
  return dict(body, sha256=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())


def test_another_schema_is_an_error(copy, make_state):
  path = copy / "6" / "record" / "record.json"
  record = json.loads(path.read_text())
  assert seal(record) == record
  path.write_text(json.dumps(seal({**record, "schema": 2, "written_by": {"sds_jax": "9.9"}})))
  message = "schema 2 and was written by sds_jax 9.9; this is"
  with Checkpoints(copy) as checkpoints, pytest.raises(SchemaError, match=message):
    checkpoints.restore_newest(make_state(0))
  (copy / "6" / "default").mkdir()
  for name in ("state", "record"):
    shutil.rmtree(copy / "6" / name)
  with Checkpoints(copy) as checkpoints, pytest.raises(SchemaError, match="before there were any"):
    checkpoints.restore_newest(make_state(0))


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
def test_damage_is_set_aside(copy, capfd, harm, reason, make_state, bits):
  harm(copy / "6")
  with Checkpoints(copy) as checkpoints:
    assert checkpoints.latest_step() == 6
    with pytest.raises(DamagedCheckpointError, match=reason):
      checkpoints.restore(6, make_state(0))
    step, state = checkpoints.restore_newest(make_state(0))
    assert step == 3 and bits(state) == bits(make_state(3)) and checkpoints.steps() == [3]
    message = capfd.readouterr().err
    assert message.startswith("warning: the checkpoint of step 6 in ") and message.count("\n") == 1
    assert str(copy / "damaged" / "6") in message
    checkpoints.save(6, make_state(66), {})  # step 6 can be saved again
    assert bits(checkpoints.restore_newest(make_state(0))[1]) == bits(make_state(66)) and checkpoints.steps() == [3, 6]
    harm(copy / "6")
    assert checkpoints.restore_newest(make_state(0))[0] == 3 and sorted(os.listdir(copy / "damaged")) == ["6", "6-2"]
  assert not issubclass(DamagedCheckpointError, ValueError)


def test_only_damaged_checkpoints_give_none(copy, capfd, make_state):
  for step in (3, 6):
    lose_record(copy / str(step))
  with Checkpoints(copy) as checkpoints:
    assert checkpoints.restore_newest(make_state(0)) is None
  assert capfd.readouterr().err.count("warning: ") == 2


def test_only_accepted_checkpoints_are_restored(copy, make_state):
  with Checkpoints(copy) as checkpoints:
    assert checkpoints.restore_newest(make_state(0), lambda metadata: metadata["at"] < 6)[0] == 3
    assert checkpoints.restore_newest(make_state(0), lambda metadata: False) is None
    assert checkpoints.steps() == [3, 6]
