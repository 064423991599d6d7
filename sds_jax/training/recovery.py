"""The way back to the last good checkpoint, of a run whose updates have stopped being finite (divergence.py)."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from sds_jax import hosts
from sds_jax.io.checkpoints import Checkpoints
from sds_jax.training import divergence, scenes as scenes_lib
from sds_jax.training.layout import Layout
from sds_jax.training.scenes import Scenes
from sds_jax.training.state import TrainState


@dataclasses.dataclass
class Recovery:
  """How a run goes back.

  Attributes:
    checkpoints: in the process that writes; None in the others.
    like: of what structure and shapes a state is, as this process sees it.
    new: () -> the state before the first update; called by the process that writes.
    scenes: of a run of many; None of one.
    told: which scenes were said to be given up.
  """
  config: ml_collections.FrozenConfigDict
  workdir: Path
  checkpoints: Checkpoints | None
  layout: Layout
  like: TrainState
  new: Callable[[], TrainState]
  scenes: Scenes | None = None
  told: set[int] = dataclasses.field(default_factory=set)

  def about(self, health: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """What a checkpoint says of itself, for `go_back`: how many bad updates in a row came before it, of each scene."""
    return dict(in_a_row=np.atleast_1d(health["in_a_row"]).tolist())

  def go_back(self, state: TrainState, done: int, bad: np.ndarray) -> tuple[TrainState, int]:
    """(state, step) to go on from.

    Args:
      done: the number of the step.
      bad: bool [], or [N] of N scenes: which have lost patience.

    Raises:
      Diverged: one object was taken back often enough. A scene of many is given up instead.
    """
    health = self.layout.fetch(state.health)
    if self.scenes is None:
      return self._whole(health, done)
    lost = bad & (health["restarts"] >= self.config.divergence.restarts)
    for number in sorted(set(np.flatnonzero(lost).tolist()) - self.told):
      print(f"\n{self.scenes.folders[number]} is given up at step {done}; the others go on")
      self.told.add(number)
    numbers = np.flatnonzero(bad & ~lost)
    return (self._some(state, health, done, numbers.tolist()) if numbers.size else state), done

  def given_up(self, health: dict[str, np.ndarray]) -> tuple[int, ...]:
    """The numbers of the scenes of many that were taken back often enough, and are bad still."""
    if self.scenes is None:
      return ()
    d = self.config.divergence
    return tuple(np.flatnonzero((health["restarts"] >= d.restarts) & (health["in_a_row"] >= d.patience)).tolist())

  def _whole(self, health: dict[str, np.ndarray], done: int) -> tuple[TrainState, int]:
    restarts = int(health["restarts"]) + 1
    if restarts > self.config.divergence.restarts:
      raise divergence.gave_up(self.config, done, f"the last good state lies in {self.workdir / 'checkpoints'}")
    good = self._good(0, drop=True)
    step = int(good.step)
    self._tell(f"{self.config.divergence.patience} updates in a row were not finite: back from step {done} to {step}",
               restarts)
    return self.layout.put_state(divergence.restarted(good, restarts, int(health["dropped"]))), step

  def _some(self, state: TrainState, health: dict[str, np.ndarray], done: int, numbers: list[int]) -> TrainState:
    """Scenes go on from an earlier state, but at the step where all the others are."""
    here = jax.tree.map(np.array, self.layout.local(state))
    for number in numbers:
      restarts = int(health["restarts"][number]) + 1
      good = divergence.restarted(scenes_lib.pick(self._good(number), number), restarts, int(health["dropped"][number]))
      here = scenes_lib.put_back(here, number, good)
      self._tell(f"{self.config.divergence.patience} updates in a row of {self.scenes.folders[number]} were not "
                 f"finite: at step {done} it goes on from an earlier state", restarts)
    return self.layout.put_state(here)

  def _tell(self, what: str, restarts: int) -> None:
    d = self.config.divergence
    print(f"\n{what}, restart {restarts} of {d.restarts}, with {d.learning_rate_factor**restarts:g} times the learning "
          "rate")

  def _good(self, number: int, drop: bool = False) -> TrainState:
    """The newest checkpoint in which all was well with a scene, else the newest (its parameters are finite), or new.

    Args:
      drop: whether the checkpoints after it are deleted.
    """
    def find() -> TrainState:
      found = (self.checkpoints.restore_newest(self.like, lambda about: about["in_a_row"][number] == 0)
               or self.checkpoints.restore_newest(self.like))
      good = found[1] if found else self.new()
      if drop:
        self.checkpoints.delete_after(int(good.step))
      return good

    return hosts.broadcast_result(self.like, find)
