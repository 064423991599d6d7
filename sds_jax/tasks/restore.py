"""The newest checkpoint of a finished or interrupted run."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from sds_jax import compilation
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.prng import seeded_key
from sds_jax.training import divergence, resume, workspace
from sds_jax.training.state import TrainState
from sds_jax.types import Array


def restore_state(new_state: Callable[[Array], TrainState], folder: Path, keep: int) -> TrainState:
  """Returns the state of the newest checkpoint, whatever its estimator.

  Args:
    new_state: (key) -> a state of the same structure.
    folder: of the run.
    keep: number of checkpoints that the run keeps.

  Raises:
    WorkdirError: there is no checkpoint, or none of its updates was finite.
    ResumeError: the checkpoint has another structure.
  """
  compilation.prepare()
  # Only structure, shapes and devices count; the values are read from the checkpoint.
  like = jax.jit(new_state)(seeded_key(0))
  with Checkpoints(folder / "checkpoints", keep) as checkpoints:
    # Outputs do not need the estimator's second network, whatever its structure.
    newest = resume.restore_newest(checkpoints, like, folder, any_estimator=True)
  if newest is None:
    raise workspace.WorkdirError(f"{folder / 'checkpoints'} holds no checkpoint; run --mode=train first")
  if np.all(divergence.is_untouched(newest[1].health, int(newest[1].step))):
    raise workspace.WorkdirError(str(divergence.nothing_learnt(newest[0], folder)))
  print(f"from the checkpoint of step {newest[0]} in {folder}")
  return newest[1]
