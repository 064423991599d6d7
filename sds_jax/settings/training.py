"""Settings of the training loop: `training`, `divergence` and `parallel`."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sds_jax.schema import above, one_of, setting, switch, whole

MAX_STEPS = 2**24
"""No run has as many steps: random keys hold the number of the step below this bit, and that of the restart above."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
  """Length of the run, views of a step, and what is written when."""
  steps: int = setting(500, whole(1, MAX_STEPS - 1), "number of updates")
  views: int = setting(2, whole(1, 4096), "images that a step renders and distils")
  log_every: int = setting(10, whole(1), "steps between lines of metrics.jsonl")
  render_every: int = setting(100, whole(0, words=" (0: never)"), "steps between renders in progress/")
  checkpoint_every: int = setting(100, whole(1), "steps between checkpoints")
  keep_checkpoints: int = setting(2, whole(1), "how many of the last checkpoints are kept")
  keep_period: int = setting(0, whole(0, words=" (0: none is kept for good)"),
                             "checkpoints of steps that are multiples of this are kept for good")


@dataclasses.dataclass(frozen=True)
class ObjectTrainingSettings(TrainingSettings):
  """Length of the run, views of a step, and what is written when."""
  particles: int = setting(1, whole(1, 4096), "objects that train together and share VSD's second network")
  guidance_every: int = setting(0, whole(0, words=" (0: never)"),
                                "steps between sheets of what the prior sees and predicts, progress/guidance_*.png")

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions within the group."""
    if self.views % self.particles:
      yield (f"{path}.views={self.views} is no multiple of {path}.particles={self.particles}: every object needs as "
             f"many views of a step; set views to {self.particles} or a multiple")


@dataclasses.dataclass(frozen=True)
class DivergenceSettings:
  """What happens to updates that are not finite: each is dropped; after too many the run goes back to a checkpoint."""
  patience: int = setting(20, whole(1), "dropped updates in a row that take the run back to a checkpoint")
  # At most 100, so that MAX_STEPS times the restarts stays below the numbers that other keys fold in.
  restarts: int = setting(3, whole(0, 100, " (0: give up at once)"), "how often the run goes back before giving up")
  learning_rate_factor: float = setting(0.5, above(0.0, 1.0), "factor on the learning rate at each restart")


@dataclasses.dataclass(frozen=True)
class ParallelSettings:
  """How the work is spread over devices."""
  devices: int = setting(0, whole(0, words=" (0: all there are)"), "devices that share the views of a step")
  mode: str = setting("jit", one_of(("jit", "pmap")), "jit: jax.jit over a mesh; pmap: the same step under jax.pmap")
  together: int = setting(-1, whole(-1, words=" (0: all, -1: chosen by the backend)"),
                          "scenes of a prompts_file that a device trains at a time")
  shard_prior: bool = setting(False, switch(), "each device keeps a part of the prior, and gathers the rest")

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions within the group."""
    if self.shard_prior and self.mode == "pmap":
      yield (f"{path}.shard_prior=True needs {path}.mode='jit', where arrays are laid out over the devices: set mode "
             "to jit, or shard_prior to False")
