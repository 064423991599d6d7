"""The README: its library example runs, and the files and commands that it names exist."""
import pathlib
import re
import subprocess

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs_and_gives_gradients():
  block, = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
  names = dict(
    my_denoiser=lambda params, z, t, cond: params * z + cond[:, None, None, None],
    my_generator=lambda theta, key: jax.nn.sigmoid(theta) + 0.0 * jax.random.normal(key, theta.shape),
    my_params=jnp.float32(0.3), text=jnp.ones(2), empty=jnp.zeros(2), theta=jnp.zeros((2, 8, 8, 3)))
  exec(block, names)  # noqa: S102
  assert names["grads"].shape == (2, 8, 8, 3) and bool(jnp.all(jnp.isfinite(names["grads"])))
  assert float(jnp.abs(names["grads"]).max()) > 1e-3 and names["aux"].t.shape == (2,)


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
