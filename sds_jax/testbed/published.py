"""What the study runs each estimator with: the published weight w(t), a range of t, and what a reader has to know.

The range of t is the published one too, but for five. The published runs of CSD, the bridge and VSD bring it down in
the middle, and that of ISM at the beginning; a particle of the study has no coarse stage and no fine one, so they keep
one range throughout: the first of theirs, and ISM the last. RFDS has SDS's, so that its weight alone tells the two
apart. Each note says so, and what a real run takes is in `training.choices`. Guidance is not here, since a study
compares estimators at equal guidance.
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

  >>> print(Setting("uniform", 0.05, 0.95))
  Setting(weighting='uniform', t_min=0.05, t_max=0.95, warp='linear', note='')
  """
  weighting: str = "sigma2"
  t_min: ScalarSpec = 0.02
  t_max: ScalarSpec = 0.98
  warp: str = "linear"
  note: str = ""


SETTINGS: dict[str, Setting] = {
  "sds": Setting(note="The reference: its expectation is the gradient of the divergence, whatever the weight."),
  "score": Setting(note="SDS without the noise taken off: the same in expectation."),
  "csd": Setting("uniform", note="Only the difference of two predictions: guidance has no part in it. The published "
                                 "range of t ends at 0.5 after half of the run."),
  "nfsd": Setting(note="Its negative prompt is a wide law around all of the data."),
  "bridge": Setting(note="Its source is that wide law, from the first step on: no stage of SDS before it. Guidance "
                         "only multiplies it. The published range of t ends at 0.5 after a fifth of the run."),
  "sjc": Setting("uniform", 0.01, 0.97, note="SDS, exactly, with another weight."),
  "rfds": Setting("uniform", note="SDS with weight 1 / (1 - tau). The published range of t ends at 0.7; here it is "
                                  "that of SDS."),
  "ldiff": Setting(note="SDS times the Jacobian of the network, which is small where there is little noise."),
  "vsd": Setting(note="Its second network is exact: the law of all particles, each blurred. What stands as bias is the "
                      "part that pushes them apart; a single image has no such part. The published range of t ends at "
                      "0.5 after a fifth of the run."),
  "dds": Setting("uniform", 0.05, 0.95, note="The source is where a particle began, under the null label; so the first "
                                             "step is that of CSD, which the field and the bias show."),
  "pds": Setting("uniform", note="As DDS, with a pull back to where the particle began."),
  "asd": Setting("sigma2", ((0.0, 0.5), (1.0, 0.02)), ((0.0, 0.98), (1.0, 0.5)),
                 note="The second prediction, at a later time, has no guidance."),
  "ism": Setting("sigma_over_alpha", 0.02, 0.5,
                 note="Noise from an inversion without a label; next to none is drawn. The published range of t ends "
                      "at 0.98 at first, and at 0.5 only after 0.3 of the run."),
  "sdi": Setting("sigma_over_alpha", ((0.0, 0.98), (1.0, 0.25)), ((0.0, 0.98), (1.0, 0.25)),
                 note="The inversion has the guidance of the way down with its sign turned; t falls in step with the "
                      "run."),
  "cds": Setting("uniform", ((0.0, 0.7), (1.0, 0.1)), ((0.0, 0.7), (1.0, 0.1)), "sqrt",
                 note="Each particle keeps one noise of its own; t falls with the square root of the run."),
}
"""Name of `estimators.ESTIMATORS` -> how the study runs it."""
