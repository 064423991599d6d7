"""What is legal for the settings that only estimators have; `validation.validate` joins it to the rest."""
from __future__ import annotations

from sds_jax.diffusion import guidance, timesteps, weightings
from sds_jax.training.checks import Check, above, finite, number, one_of, scalar, whole


def checks() -> dict[str, Check]:
  """Dotted name -> check."""
  words = (lambda v: len(v) <= 10_000, "a text of at most 10,000 characters")
  fraction = number(0.0, 1.0, ", a fraction of the schedule")
  start = (lambda v: finite(v) and (v == -1.0 or 0.0 <= v <= 1.0),
           "a fraction of the schedule from 0 to 1, or -1: chosen by what the prior predicts")
  own = {
      "csd.negative_prompt": words,
      "csd.negative_weight": scalar(-100.0, 100.0),
      "nfsd.negative_prompt": words,
      "nfsd.null_until": fraction,
      "bridge.target_words": words,
      "bridge.source_words": words,
      "bridge.begins": number(0.0, 1.0, ", a fraction of the run"),
      "vsd.rank": whole(1, 1024),
      "vsd.learning_rate": above(0.0),
      "vsd.forget_camera": number(0.0, 1.0),
      "asd.shift": fraction,
      "ism.delta_t": scalar(0.0, 1.0),
      "ism.delta_s": number(0.001, 1.0, ", a fraction of the schedule"),
      "ism.steps": whole(1, 1000),
      "ism.start": start,
      "sdi.inversion": scalar(-100.0, 100.0),
      "sdi.eta": number(0.0, 10.0),
      "sdi.stride": number(0.001, 1.0, ", a fraction of the schedule"),
      "sdi.steps": whole(1, 1000),
      "sdi.start": start,
      "cds.gap": fraction,
      "cds.spread": fraction,
      "cds.clip": scalar(0.0),
      "hifa.image_weight": scalar(0.0),
      "sds.weighting": one_of(weightings.WEIGHTINGS),
      "sds.guidance_convention": one_of(guidance.CONVENTIONS),
      "sds.guidance_scale": scalar(-1000.0, 1000.0),
      "sds.t_min": scalar(0.0, 1.0),
      "sds.t_max": scalar(0.0, 1.0),
      "sds.t_warp": one_of((*timesteps.WARPS, "dreamtime")),
  }
  return {f"distillation.{name}": check for name, check in own.items()} | {"distillation.source_prompt": words}
