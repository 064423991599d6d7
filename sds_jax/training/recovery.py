"""Returns a run to its last good checkpoint when updates stay non-finite (divergence.py)."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from sds_jax import hosts
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.training import divergence, scenes as scenes_lib
from sds_jax.settings.training import DivergenceSettings
from sds_jax.training.layout import DeviceLayout
from sds_jax.training.scenes import SceneList
from sds_jax.training.state import TrainState


@dataclasses.dataclass
class Recovery:
  """Takes a run back to an earlier state.

  Attributes:
    settings: patience, number of restarts, and their learning rate.
    workdir: folder of the run, for messages.
    checkpoints: of the run, in the process that writes; None in the other processes.
    layout: devices of the run.
    like: structure and shapes of a state in this process.
    new: () -> the state before the first update; called by the process that writes.
    scenes: the scenes of a run of many; None for one object.
    reported: numbers of the scenes whose end has been printed.
  """
  settings: DivergenceSettings
  workdir: Path
  checkpoints: Checkpoints | None
  layout: DeviceLayout
  like: TrainState
  new: Callable[[], TrainState]
  scenes: SceneList | None = None
  reported: set[int] = dataclasses.field(default_factory=set)

  def metadata(self, health: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """Returns the metadata of a checkpoint for `go_back`.

    By scene, the number of bad updates in a row before the checkpoint.
    """
    return dict(in_a_row=np.atleast_1d(health["in_a_row"]).tolist())

  def go_back(self, state: TrainState, done: int, bad: np.ndarray) -> tuple[TrainState, int]:
    """Returns (state, step) to continue from.

    Args:
      state: at step `done`.
      done: number of updates done.
      bad: bool [], or [N] for N scenes: whether patience is used up.

    Raises:
      Diverged: the restarts of a single object are used up. A scene of many is given up instead.
    """
    health = self.layout.fetch(state.health)
    if self.scenes is None:
      return self._whole(health, done)
    exhausted = bad & (health["restarts"] >= self.settings.restarts)
    for number in sorted(set(np.flatnonzero(exhausted).tolist()) - self.reported):
      print(f"\n{self.scenes.folders[number]} is given up at step {done}; the other scenes continue")
      self.reported.add(number)
    numbers = np.flatnonzero(bad & ~exhausted)
    return (self._some(state, health, done, numbers.tolist()) if numbers.size else state), done

  def given_up(self, health: dict[str, np.ndarray], step: int) -> tuple[int, ...]:
    """Returns the numbers of the scenes that diverged by the end of a run.

    The restarts of such a scene are used up and the updates are still bad, or none of the updates was good.

    Args:
      health: at the end of the run.
      step: number of updates done.

    Raises:
      Diverged: none of the updates of the one object, or of any scene, was good.
    """
    untouched = divergence.is_untouched(health, step)
    if np.all(untouched):
      raise divergence.nothing_learnt(step, self.workdir)
    if self.scenes is None:
      return ()
    d = self.settings
    bad = (health["restarts"] >= d.restarts) & (health["in_a_row"] >= d.patience)
    return tuple(np.flatnonzero(bad | untouched).tolist())

  def _whole(self, health: dict[str, np.ndarray], done: int) -> tuple[TrainState, int]:
    restarts = int(health["restarts"]) + 1
    if restarts > self.settings.restarts:
      raise divergence.gave_up(self.settings, done, f"the last good state is in {self.workdir / 'checkpoints'}")
    good = self._good(0, drop=True)
    step = int(good.step)
    self._print(f"{self.settings.patience} updates in a row were not finite: back from step {done} to {step}",
               restarts)
    return self.layout.put_state(divergence.restarted(good, restarts, int(health["dropped"]))), step

  def _some(self, state: TrainState, health: dict[str, np.ndarray], done: int, numbers: list[int]) -> TrainState:
    """Returns the state with some scenes replaced by an earlier one.

    The step is that of all other scenes.
    """
    # np.array copies: `put_back` writes in place, and arrays from the device are read-only.
    states = jax.tree.map(np.array, self.layout.local(state))
    for number in numbers:
      restarts = int(health["restarts"][number]) + 1
      good = divergence.restarted(scenes_lib.pick(self._good(number), number), restarts, int(health["dropped"][number]))
      states = scenes_lib.put_back(states, number, good)
      self._print(f"{self.settings.patience} updates in a row of {self.scenes.folders[number]} were not "
                 f"finite: at step {done} the scene continues from an earlier state", restarts)
    return self.layout.put_state(states)

  def _print(self, event: str, restarts: int) -> None:
    d = self.settings
    print(f"\n{event}, restart {restarts} of {d.restarts}, with {d.learning_rate_factor**restarts:g} times the "
          "learning rate")

  def _good(self, number: int, drop: bool = False) -> TrainState:
    """Returns the state to go back to.

    The state is that of the newest checkpoint before a scene's bad updates, else the newest checkpoint, else a new
    state.

    The parameters of every checkpoint are finite, because bad updates are dropped.

    Args:
      number: of the scene.
      drop: whether later checkpoints are deleted.
    """
    def find() -> TrainState:
      newest = (self.checkpoints.restore_newest(self.like, lambda metadata: metadata["in_a_row"][number] == 0)
                or self.checkpoints.restore_newest(self.like))
      good = newest[1] if newest else self.new()
      if drop:
        # Otherwise a resumed run would go on from a state that has been given up.
        self.checkpoints.delete_after(int(good.step))
      return good

    return hosts.broadcast_result(self.like, find)
