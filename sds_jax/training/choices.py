"""What each estimator chooses for itself where the settings leave it open: weight, guidance, and where t is drawn.

Published values of text-to-3D, from the authors' code where it could be read (or threestudio's, for VSD, SDI and HiFA):

  csd    its coarse stage. There the gradient is brought to length 1; here the optimiser's own scaling has to do
  nfsd   of the paper as others have run it; no code of the authors'
  bridge SDS first, then the bridge. The authors' code gives the second stage a weight of 1
  sjc    s = 100
  rfds   of Stable Diffusion 3, without the random factor of its loss; its code counts steps from the noisy end
  vsd    t up to 0.5 after a fifth of the run; the second network is LoRA on the prior
  dds    of images: there is no published 3D. 200 steps of SGD there
  pds    of NeRFs
  asd    both ends of t's range come down over the run
  ism    t up to 0.98 at first, 0.5 after 0.3 of the run; Perp-Neg is on there, and the weight multiplied by 0.1
  sdi    t comes down without randomness
  cds    t is the lower of its two times, and follows the square root of progress
  hifa   t comes down with the square root of progress; its z-variance loss and multi-step x0 are left out

With the prior that ships, guidance of 100 or so is far too much: it was trained on simple pictures, so that guidance 3
does what 100 does elsewhere. SMALL has what it needs instead. A prior that is told a picture takes the guidance of
`distillation.sds` with every estimator (but CSD, which has none): the published scales are for words.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sds_jax.priors import sources
from sds_jax.training import workspace

OPEN = {"weighting": "auto", "guidance_convention": "auto", "guidance_scale": (), "t_min": (), "t_max": (),
        "t_warp": "auto"}
"""The settings of `distillation` that may be left open, and what they are then."""

LIKE_SDS = ("sds", "score", "ldiff")
"""Estimators that take the group `distillation.sds`, which is a recipe's to set."""

_AFTER_A_FIFTH, _AFTER_HALF = (((0.0, 0.98), (at, 0.98), (at + 0.001, 0.5)) for at in (0.2, 0.5))


def _choice(scale: tuple, weighting: str = "sigma2", convention: str = "diffusers", t_min: tuple = (0.02,),
            t_max: tuple = (0.98,), warp: str = "linear") -> dict[str, Any]:
  return dict(weighting=weighting, guidance_convention=convention, guidance_scale=scale, t_min=t_min, t_max=t_max,
              t_warp=warp)


PUBLISHED: dict[str, dict[str, Any]] = {
    "csd": _choice((1.0,), "uniform", t_max=_AFTER_HALF),  # its guidance has no scale
    "nfsd": _choice((7.5,)),
    "bridge": _choice(((0.0, 100.0), (0.8, 100.0), (0.801, 1.0)), t_max=_AFTER_A_FIFTH),
    "sjc": _choice((100.0,), "uniform", t_min=(0.01,), t_max=(0.97,)),
    "rfds": _choice((100.0,), "uniform", t_max=(0.7,)),
    "vsd": _choice((7.5,), t_max=_AFTER_A_FIFTH),
    "dds": _choice((7.5,), "uniform", t_min=(0.05,), t_max=(0.95,)),
    "pds": _choice((100.0,), "uniform"),
    "asd": _choice((7.5,), t_min=((0.0, 0.5), (1.0, 0.02)), t_max=((0.0, 0.98), (1.0, 0.5))),
    "ism": _choice((7.5,), "sigma_over_alpha", t_max=((0.0, 0.98), (0.3, 0.5))),
    "sdi": _choice((7.5,), "sigma_over_alpha", "dreamfusion", t_min=((0.0, 0.98), (1.0, 0.25)),
                   t_max=((0.0, 0.98), (1.0, 0.25))),
    "cds": _choice(((0.0, 100.0), (1.0, 50.0)), "uniform", "dreamfusion", t_min=((0.0, 0.7), (1.0, 0.1)),
                   t_max=((0.0, 0.7), (1.0, 0.1)), warp="sqrt"),
    "hifa": _choice((100.0,), "sigma2", "dreamfusion", t_min=((0.0, 0.98), (1.0, 0.3)),
                    t_max=((0.0, 0.98), (1.0, 0.3)), warp="sqrt"),
}

_LATE = ((0.0, 0.8), (1.0, 0.3))

SMALL: dict[str, dict[str, Any]] = {
    name: dict(guidance_convention="diffusers", guidance_scale=(3.0,)) for name in PUBLISHED}
SMALL["csd"] = {}
SMALL["pds"]["guidance_scale"] = (20.0,)  # else its pull to the source, here an empty mist, wins
SMALL["ism"]["t_min"] = (0.25,)  # an inversion that begins at 0.15 wants room for its interval
SMALL["cds"] |= dict(t_min=_LATE, t_max=_LATE)  # t below 0.3 flattens the object
"""Over the published ones, with a prior like the one that ships."""


def resolve(config: ConfigDict) -> ConfigDict:
  """A copy in which nothing of `distillation` is left open. The estimator must be a known one.

  Raises:
    WorkdirError: the settings of the run that is edited (`distillation.source`) cannot be read.
    CheckpointError: the prior's model_index.json cannot be read.
  """
  config = ConfigDict(config)
  d = config.distillation
  if d.estimator in LIKE_SDS:
    own = d.sds.to_dict()
  else:
    small = SMALL[d.estimator] if sources.is_small(config.prior.path or config.prior.name) else {}
    own = PUBLISHED[d.estimator] | small
    if config.job == "image3d" and d.estimator != "csd":
      own |= dict(guidance_convention=d.sds.guidance_convention, guidance_scale=d.sds.guidance_scale)
  for name, unset in OPEN.items():
    if d[name] == unset:
      d[name] = own[name]
  if d.source and not d.source_prompt and (Path(d.source) / "config.json").is_file():
    d.source_prompt = workspace.stored_config(Path(d.source), {}).prompt
  return config
