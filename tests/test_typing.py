"""The type hints, as a type checker sees them in a program of a user."""
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sds_jax import (DistillationAux, ESTIMATORS, Schedule, add_noise, flow_schedule, guided, inject,
                     schedule_from_config, score_distillation, score_loss)
from sds_jax.types import Camera


def denoise(params: Any, z: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
  return jnp.asarray(params * z)


def estimator(denoise_fn: Any, params: Any, schedule: Schedule, x: jax.Array, t: jax.Array, eps: jax.Array, cond: Any,
              keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
  eps_hat = denoise_fn(params, add_noise(schedule, x, eps, t), t, cond)
  return eps_hat - eps, dict(eps_hat=eps_hat, x0_hat=x)


schedule: Schedule = schedule_from_config({}).replace(alpha=jnp.ones(1000))
own: Schedule = Schedule(alpha=np.ones(10), sigma=np.ones(10)).replace(sigma=2 * jnp.ones(10))
key, x = jax.random.key(0), jnp.zeros((2, 8, 8, 3))


def loss(x: jax.Array, scale: float) -> tuple[jax.Array, DistillationAux]:
  return score_distillation(guided(denoise, "diffusers", 7.5), 0.5, flow_schedule(10), x, key,
                            dict(cond=jnp.ones(2), uncond=jnp.zeros(2)), t=[1, 2], index=np.arange(2), scale=scale,
                            t_range=(0.02, 0.98), weighting=lambda schedule, t: schedule.sigma[t], estimator=estimator)


value, aux = loss(x, 1.0)
t: jax.Array = aux.t
again: DistillationAux = aux.replace(t=t)
total: jax.Array = value + inject(x, x) + score_loss(denoise, 0.5, own, x, key, None, t=np.array([1, 2]))
score_distillation(denoise, 1.0, schedule, x, key, None, weighting=lambda schedule, t: 1.0, clip_norm=jnp.ones(2))
score_distillation(denoise, 1.0, schedule, x, key, None, estimator=ESTIMATORS["sds"], scale=np.float32(2.0))
moved: Camera = Camera(jnp.zeros(3), jnp.eye(3), jnp.ones(())).replace(focal=jnp.ones(()))
'''


@pytest.mark.thorough
def test_a_users_program_passes_mypy(tmp_path):
  """Checks with `--strict`, where the hints of the package must be found and be right."""
  pytest.importorskip("mypy")
  (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
  root = Path(__file__).parents[1]
  done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir",
                         str(tmp_path / "cache"), "program.py"], cwd=tmp_path, capture_output=True, text=True,
                        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}, check=False)
  assert done.returncode == 0, done.stdout
