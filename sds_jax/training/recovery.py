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
    new: () -> the state before the first update, for a run without a good checkpoint.
    scenes: of a run of many; None of one.
    given_up: the numbers of the scenes that were taken back often enough; the others go on.
  """
  config: ml_collections.FrozenConfigDict
  workdir: Path
  checkpoints: Checkpoints | None
  layout: Layout
  new: Callable[[], TrainState]
  scenes: Scenes | None = None
  given_up: list[int] = dataclasses.field(default_factory=list)

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
    here = self.layout.local(state)
    return self._whole(here, done) if self.scenes is None else (self._some(state, here, done, bad), done)

  def _whole(self, here: TrainState, done: int) -> tuple[TrainState, int]:
    health, limit = jax.device_get(here.health), self.config.divergence.restarts
    restarts = int(health["restarts"]) + 1
    if restarts > limit:
      raise divergence.gave_up(self.config, done, f"the last good state lies in {self.workdir / 'checkpoints'}")
    good = self._good(0, drop=True)
    step = int(good.step)
    self._tell(f"{self.config.divergence.patience} updates in a row were not finite: back from step {done} to {step}",
               restarts)
    return self.layout.put_state(divergence.restarted(good, restarts, int(health["dropped"]))), step

  def _some(self, state: TrainState, here: TrainState, done: int, bad: np.ndarray) -> TrainState:
    here, changed = jax.tree.map(np.array, here), False
    for number in np.flatnonzero(bad[:len(self.scenes.prompts)]):
      number = int(number)
      if number in self.given_up:
        continue
      restarts = int(here.health["restarts"][number]) + 1
      if restarts > self.config.divergence.restarts:
        self.given_up.append(number)
        self._tell(f"{self.scenes.folders[number]} is given up at step {done}; the others go on")
        continue
      good = scenes_lib.pick(self._good(number), number)
      good = divergence.restarted(good, restarts, int(here.health["dropped"][number]))
      here, changed = scenes_lib.put_back(here, number, good), True
      self._tell(f"{self.config.divergence.patience} updates in a row of {self.scenes.folders[number]} were not "
                 "finite: it goes on from an earlier state", restarts)
    return self.layout.put_state(here) if changed else state

  def _tell(self, what: str, restarts: int = 0) -> None:
    d = self.config.divergence
    rest = (f", restart {restarts} of {d.restarts}, with {d.learning_rate_factor**restarts:g} times the learning rate"
            if restarts else "")
    print(f"\n{what}{rest}")

  def _good(self, number: int, drop: bool = False) -> TrainState:
    """The newest checkpoint in which all was well with a scene, or a new state; `drop`: later ones are deleted."""
    good, problem = self.new(), None
    if self.checkpoints is not None:
      try:
        if found := self.checkpoints.newest(good, lambda about: about["in_a_row"][number] == 0):
          good = found[1]
        if drop:
          self.checkpoints.drop_after(int(good.step))
      except (ValueError, OSError) as error:
        problem = error
    hosts.all_well(problem)
    return hosts.from_first(good)
