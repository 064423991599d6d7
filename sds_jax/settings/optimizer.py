"""Settings of the optimizer: `optimizer`."""
from __future__ import annotations

import dataclasses

from sds_jax.schema import above, below, number, one_of, setting, whole


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """The optimizer of all parameters: a linear warm-up, then a cosine decay. Adan keeps its own betas."""
  name: str = setting("adam", one_of(("adam", "adan", "adamw", "sgd")), "update rule")
  learning_rate: float = setting(1e-2, above(0.0), "largest learning rate")
  warmup_steps: int = setting(20, whole(0), "steps over which the learning rate rises from 0")
  final_fraction: float = setting(0.1, number(0.0, 1.0), "learning rate at the end, as a fraction of the largest")
  b1: float = setting(0.9, number(0.0, 0.9999), "decay of the first moment (adam, adamw); momentum (sgd)")
  # b2 and eps of instant-ngp (arXiv:2201.05989, section 4): gradients of rows of a hash grid are sparse and small.
  b2: float = setting(0.99, number(0.0, 0.99999), "decay of the second moment (adam, adamw)")
  eps: float = setting(1e-15, above(0.0), "added to the denominator (adam, adamw, adan)")
  clip_norm: float = setting(0.0, number(0.0, words=" (0: no clipping)"), "largest norm of the gradient")
  ema_decay: float = setting(0.0, below(0.0, 1.0, " (0: none)"), "decay of the parameters' average, for outputs")
  background_factor: float = setting(1.0, number(0.0, 100.0), "learning rate of a learnt background over the field's")
