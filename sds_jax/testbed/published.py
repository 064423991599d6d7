"""What the study runs each estimator with: the published weight w(t) and range of t, and what it is asked about.

Guidance is not here, since a study compares estimators at equal guidance.
"""
from __future__ import annotations

import dataclasses

from sds_jax.diffusion.scalars import ScalarSpec


@dataclasses.dataclass(frozen=True)
class Setting:
  """How an estimator is run.

  Attributes:
    weighting: a name of `weightings.WEIGHTINGS`.
    t_min, t_max: ends of the range of t over the run, fractions of the schedule, as `timesteps.annealed_range` has it.
    warp: of the range's movement.
    note: what a reader of the figures has to know.
  """
  weighting: str = "sigma2"
  t_min: ScalarSpec = 0.02
  t_max: ScalarSpec = 0.98
  warp: str = "linear"
  note: str = ""


SETTINGS: dict[str, Setting] = {
  "sds": Setting(note="The reference: its expectation is the gradient of the divergence, whatever the weight."),
  "score": Setting(note="SDS without the noise taken off: the same in expectation."),
  "csd": Setting("uniform", note="Only the difference of two predictions: guidance has no part in it."),
  "nfsd": Setting(note="Its negative prompt is a wide law around all of the data."),
  "bridge": Setting(note="Its source is that wide law, from the first step on: no stage of SDS before it. Guidance "
                         "only multiplies it."),
  "sjc": Setting("uniform", 0.01, 0.97, note="SDS, exactly, with another weight."),
  "rfds": Setting("uniform", note="SDS with weight 1 / (1 - tau)."),
  "ldiff": Setting(note="SDS times the Jacobian of the network, which is small where there is little noise."),
  "vsd": Setting(note="Its second network is exact: the law of all particles, each blurred. What stands as bias is the "
                      "part that pushes them apart; a single image has no such part."),
  "dds": Setting("uniform", 0.05, 0.95, note="The source is where a particle began, under the null label; so the first "
                                             "step is that of CSD, which the field and the bias show."),
  "pds": Setting("uniform", note="As DDS, with a pull back to where the particle began."),
  "asd": Setting("sigma2", ((0.0, 0.5), (1.0, 0.02)), ((0.0, 0.98), (1.0, 0.5)),
                 note="The second prediction, at a later time, has no guidance."),
  "ism": Setting("sigma_over_alpha", 0.02, 0.5, note="Noise from an inversion without a label; next to none is drawn."),
  "sdi": Setting("sigma_over_alpha", ((0.0, 0.98), (1.0, 0.25)), ((0.0, 0.98), (1.0, 0.25)),
                 note="The inversion has the guidance of the way down with its sign turned; t falls in step with the "
                      "run."),
  "cds": Setting("uniform", ((0.0, 0.7), (1.0, 0.1)), ((0.0, 0.7), (1.0, 0.1)), "sqrt",
                 note="Each particle keeps one noise of its own; t falls with the square root of the run."),
}
"""Name of `estimators.ESTIMATORS` -> how the study runs it."""
