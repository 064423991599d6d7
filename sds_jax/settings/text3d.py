"""The settings of text-to-3D."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sds_jax.schema import file, one_of, setting
from sds_jax.settings.common import ObjectSettings, without_effect

_OF_ONE_OBJECT = {"training.guidance_every": 0, "parallel.mode": "jit", "parallel.shard_prior": False,
                  "distillation.source": "", "training.particles": 1}
"""Settings that do not go with a file of prompts, and their one legal value then."""


@dataclasses.dataclass(frozen=True)
class Text3D(ObjectSettings):
  """The settings of an object from a prompt, or of many from a file. Defaults: two CPU cores, the shipped prior."""
  job: str = setting("text3d", one_of(("text3d",)), "the task: which tree of settings this is")
  prompts_file: str = setting("", file(" (empty: none)"), "file of prompts, one a line: as many objects at once")

  def relations(self, path: str) -> Iterator[str]:
    """Yields contradictions between the groups."""
    yield from super().relations(path)
    d = self.distillation
    if d.perp_neg != "none" and d.view_words == "none":
      yield (f"{path}.distillation.perp_neg={d.perp_neg!r} distinguishes views by their words, but "
             f"{path}.distillation.view_words={d.view_words!r}: set it to nearest or blended, or perp_neg to none")
    if self.prompts_file:
      yield from without_effect(self, path, _OF_ONE_OBJECT,
                                f"is for one object, not for {path}.prompts_file={self.prompts_file!r}")
