"""The settings of each estimator in the study: the weight w(t), the range of t, a note for the reader.

Weights and ranges of t are the published values, with five exceptions for the ranges. The published runs of CSD, the
bridge and VSD lower the range in the middle of a run, and the published run of ISM lowers its range near the start. A
particle of the study has no coarse stage and no fine stage, so these four keep a constant range: CSD, the bridge and
VSD the first range, ISM the last range. RFDS takes the range of SDS, so that only the weight separates the two. Each
note names its exception. The settings of real runs are in the records of the estimators. Guidance is not listed here,
because the study compares all estimators at equal guidance.
"""
from __future__ import annotations

import dataclasses
from typing import Any

from sds_jax.diffusion.estimators import ESTIMATORS, Draw, Estimator
from sds_jax.diffusion.scalars import ScalarSpec


@dataclasses.dataclass(frozen=True)
class EstimatorSetting:
  """Weight and times of an estimator in the study.

  Attributes:
    weighting: a name in `weightings.WEIGHTINGS`.
    t_min, t_max: ends of the range of t over the run, fractions of the schedule, as for `timesteps.annealed_range`.
    warp: a name in `timesteps.WARPS`, the pace at which the range moves.
    note: a sentence under the figures of the estimator.
    options: changes to the options of the estimator, by name.

  >>> print(EstimatorSetting("uniform", 0.05, 0.95))
  EstimatorSetting(weighting='uniform', t_min=0.05, t_max=0.95, warp='linear', note='', options={})
  """
  weighting: str = "sigma2"
  t_min: ScalarSpec = 0.02
  t_max: ScalarSpec = 0.98
  warp: str = "linear"
  note: str = ""
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


NOTES: dict[str, str] = {
  "sds": "The reference: its expectation is the gradient of the divergence, for every weight.",
  "score": "SDS without subtracting the noise: the same expectation.",
  "csd": "Only the difference of two predictions, so guidance has no effect. The published range of t ends at 0.5 "
         "after half of the run.",
  "nfsd": "Its negative prompt is a wide law around all of the data.",
  "bridge": "Its source is the wide law from the first step on, without a first stage of SDS. Guidance only "
            "multiplies the gradient. The published range of t ends at 0.5 after a fifth of the run.",
  "sjc": "Exactly SDS with another weight.",
  "rfds": "SDS with weight 1 / (1 - tau). The published range of t ends at 0.7; the study uses the range of SDS.",
  "ldiff": "SDS times the Jacobian of the network, which is small at little noise.",
  "vsd": "Its second network is exact: the law of all particles, each blurred. The reported bias is the part of the "
         "gradient that pushes particles apart; a single image has no such part. The published range of t ends at 0.5 "
         "after a fifth of the run.",
  # The field and the bias take each point as its own source, where DDS is eps(y) - eps(null): the residual of CSD.
  "dds": "The source is the start of the particle, under the null label. The first step is therefore the step of CSD, "
         "and the field and the bias show this first step.",
  "pds": "As DDS, with a pull back to the start of the particle.",
  "asd": "The second prediction, at a later time, has no guidance.",
  "ism": "The noise comes from an inversion without a label; hardly any noise is drawn. The published range of t ends "
         "at 0.98 at first, and at 0.5 only after 0.3 of the run.",
  "sdi": "The inversion uses the guidance of the denoising step with the opposite sign; t falls linearly.",
  "cds": "Each particle keeps one noise for the whole run; t falls with the square root of the progress.",
}
"""Name -> a sentence under the figures of the estimator."""

CHANGES: dict[str, dict[str, Any]] = {
  "csd": dict(t_max=0.98), "bridge": dict(t_max=0.98, options=dict(begins=0.0)), "rfds": dict(t_max=0.98),
  "vsd": dict(t_max=0.98), "ism": dict(t_max=0.5),
}
"""Name -> fields of `EstimatorSetting` different from the published values."""


def setting_of(record: Estimator) -> EstimatorSetting:
  """Returns the settings of an estimator in the study.

  The published values with CHANGES, and the note.

  >>> print(setting_of(ESTIMATORS["ism"]).t_max, setting_of(ESTIMATORS["sjc"]).t_max)
  0.5 0.97
  """
  # `Draw()` holds the defaults of a run, sigma^2 and t in [0.02, 0.98].
  draw = record.published or Draw()
  setting = EstimatorSetting(draw.weighting, draw.t_min, draw.t_max, draw.t_warp, NOTES.get(record.name, ""))
  return dataclasses.replace(setting, **CHANGES.get(record.name, {}))


SETTINGS: dict[str, EstimatorSetting] = {
  name: setting_of(record) for name, record in ESTIMATORS.items() if record.term is None}
"""Name in `estimators.ESTIMATORS` -> settings of the estimator in the study.

Estimators with a second term are left out: the second term needs the decoder of a latent prior.
"""
