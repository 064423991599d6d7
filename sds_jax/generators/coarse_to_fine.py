"""Changes of a field over a run: blur of the paper's MLP, open levels of a hash grid."""
from __future__ import annotations

import dataclasses

from sds_jax.diffusion.scalars import ScalarSpec, schedule_value
from sds_jax.fields import hashgrid
from sds_jax.fields.field import Field
from sds_jax.types import Array, FieldFn, Params


@dataclasses.dataclass(frozen=True)
class FieldSchedule:
  """A schedule from coarse to fine; by default nothing changes.

  Attributes:
    variance: blur of a `paper_mlp`, world units squared; None: that of the finished field.
    open_levels: number of levels of a `hashgrid` that count, the coarsest first; None: all of them.
  """
  variance: ScalarSpec | None = None
  open_levels: ScalarSpec | None = None

  def at(self, field: Field, params: Params, progress: Array) -> tuple[FieldFn, Params]:
    """Returns the field and its parameters as a step renders them.

    Args:
      field: the field.
      params: of the field.
      progress: fraction [] float32 of the run that is done.
    """
    if self.variance is not None:
      variance = schedule_value(self.variance, progress)
      # A traced number, so that one program serves the whole run.
      return lambda p, points: field.apply(p, points, variance), params
    if self.open_levels is not None:
      return field.apply, hashgrid.open_levels(params, schedule_value(self.open_levels, progress))
    return field.apply, params
