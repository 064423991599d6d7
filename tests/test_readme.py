"""The README: its library example runs, and the files and commands that it names exist."""
import json
import pathlib
import re
import subprocess

import jax
import jax.numpy as jnp

from sds_jax.evaluation import estimators
from sds_jax.testbed import study, suite
from sds_jax.training import image2d_config
from sds_jax.training.distil import NAMES

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(title):
  """The Python blocks of a section."""
  section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
  return re.findall(r"```python\n(.*?)```", section, flags=re.S)


def test_the_library_example_runs_and_gives_gradients():
  block = blocks("The library in ten lines")[0]
  names = dict(
    my_denoiser=lambda params, z, t, cond: params * z + cond[:, None, None, None],
    my_generator=lambda theta, key: jax.nn.sigmoid(theta) + 0.0 * jax.random.normal(key, theta.shape),
    my_params=jnp.float32(0.3), text=jnp.ones(2), empty=jnp.zeros(2), theta=jnp.zeros((2, 8, 8, 3)))
  exec(block, names)  # noqa: S102
  assert names["grads"].shape == (2, 8, 8, 3) and bool(jnp.all(jnp.isfinite(names["grads"])))
  assert float(jnp.abs(names["grads"]).max()) > 1e-3 and names["aux"].t.shape == (2,)


def test_what_it_composes_runs_and_is_right():
  names = {}
  with jax.numpy_dtype_promotion("standard"):  # optax mixes step counts and floats, as a reader's session lets it
    for block in blocks("Composing it"):
      exec(block, names)  # noqa: S102
  alone = jnp.stack([names["grad_fn"](names["theta"], label, names["key"]) for label in (0, 1)])
  assert jnp.allclose(names["two"], alone, atol=1e-5)
  for found in ("ran", "fitted"):  # towards the images of label 1, somewhat beyond them under guidance
    assert 0.3 < float(jnp.tanh(names[found]).mean()) < 0.9
  devices = names["devices"]
  whole = jax.grad(names["batch_loss"])(names["theta"], jnp.arange(2 * devices))
  assert devices > 1 and jnp.allclose(names["by_pmap"][devices - 1], whole, atol=1e-5)
  assert jnp.allclose(names["by_shards"], whole, atol=1e-5)
  assert float(jnp.abs(names["grads"]).max()) > 0 and float(jnp.abs(names["phi_grad"])) > 0
  assert float(jnp.abs(names["theta_grad"]).max()) > 0 and names["aux"].eps_hat.shape == (1, 8, 8, 3)


def test_tables_of_estimators_are_those_of_the_records():
  assert suite.table(json.loads(study.RECORDS.read_text(encoding="utf-8"))["estimators"]) in TEXT
  scores = estimators.read(estimators.SHIPPED)
  assert set(scores) == set(NAMES) and estimators.table(scores, estimators.read_times(estimators.SHIPPED)) in TEXT


def test_a_generator_of_ones_own_needs_no_registration(monkeypatch):
  """The block, with one step of a small batch."""
  block, = blocks("Teach any generator")
  settings = image2d_config.default()
  settings.training.update(steps=1, views=1)
  settings.optimizer.warmup_steps = 0
  monkeypatch.setattr(image2d_config, "default", lambda: settings)
  names = {}
  exec(block, names)  # noqa: S102
  assert names["theta"].shape == (64, 64, 3) and float(jnp.abs(names["theta"]).max()) > 1e-3


def test_every_estimator_is_in_the_table():
  table = TEXT.split("\n## Estimators\n")[1].split("\n## ")[0]
  assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == set(NAMES)


def test_the_files_that_it_shows_are_there():
  for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT):
    assert (ROOT / path).is_file(), path


def test_the_command_of_continuous_integration_is_the_readmes():
  found = subprocess.run(["sed", "-n", r"s/^    \(python3 -m venv .*pytest.*\)$/\1/p", str(ROOT / "README.md")],
                         capture_output=True, text=True, check=True).stdout.splitlines()
  assert len(found) == 1 and "[test,parity]" in found[0]
  assert r"s/^    \(python3 -m venv .*pytest.*\)$/\1/p" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_room_in_the_table_exists():
  rooms = re.findall(r"^\| `(sds_jax/\w+)` \|", TEXT, flags=re.M)
  assert {f"sds_jax/{p.name}" for p in (ROOT / "sds_jax").iterdir() if (p / "__init__.py").is_file()} == set(rooms)
