"""What is legal for the settings that only estimators have; `validation.validate` joins it to the rest."""
from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from sds_jax.diffusion import guidance, timesteps, weightings
from sds_jax.training import choices, estimator_state
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


def relations(config: ConfigDict) -> Iterator[str]:
  """What only an estimator and another setting together can get wrong; of settings in which nothing is left open."""
  d = config.distillation
  name = f"config.distillation.estimator={d.estimator!r}"
  edits = d.estimator in estimator_state.EDITS
  if d.source and not edits:
    yield (f"config.distillation.source={d.source!r} is what {' and '.join(estimator_state.EDITS)} edit, but {name}: "
           "set it to one of these, or source to ''")
  if d.source and edits and not d.source_prompt:
    yield (f"config.distillation.source={d.source!r} is not the folder of a run (it has no config.json): give one, "
           "such as runs/a-red-cube-0, or say what it shows with config.distillation.source_prompt")
  if d.estimator == "csd" and d.guidance_scale != choices.PUBLISHED["csd"]["guidance_scale"]:
    yield (f"config.distillation.guidance_scale={d.guidance_scale!r} plays no part in {name}: leave it open (); "
           "config.loss.sds and the learning rate have its place")
  if d.estimator == "bridge" and d.perp_neg != "none":
    yield (f"config.distillation.perp_neg={d.perp_neg!r} would put the prompt in the place of the target's description "
           f"of {name}: set it to none")
  if d.estimator == "hifa" and d.latent_until > 0.0:
    yield (f"config.distillation.latent_until={d.latent_until} makes a latent of normals, which no picture belongs to, "
           f"but {name} has a term on pictures: set it to 0.0")
  pictures, setting = _pictures(config)
  if pictures > 1 and (d.antithetic_noise or d.t_sampler == "antithetic"):
    wanted, other = (("antithetic_noise=True", "antithetic_noise to False") if d.antithetic_noise else
                     ("t_sampler='antithetic'", "t_sampler to stratified"))
    yield (f"config.distillation.{wanted} pairs views of one object, but {setting} makes neighbouring views strangers: "
           f"set that to 1, or {other}")


def _pictures(config: ConfigDict) -> tuple[int, str]:
  """How many pictures or objects with nothing in common a step has, and the setting that says so."""
  if "particles" in config.training:
    return config.training.particles, f"config.training.particles={config.training.particles}"
  g = config.generator
  if g.name == "shared" and g.shared.frames > 1:
    return g.shared.frames, f"config.generator.shared.frames={g.shared.frames}"
  return g.particles, f"config.generator.particles={g.particles}"
