"""Every setting of pictures, and what suits each generator; `config.py` tells of the groups that all jobs have."""
from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from sds_jax.generators.catalogue import GENERATORS
from sds_jax.training import config as config_lib
from sds_jax.training.checks import ConfigError

COMMON = ("negative_prompt", "seed", "workdir", "resume", "prior", "distillation", "optimizer", "training",
          "divergence", "parallel")
"""Settings that pictures have in common with text-to-3D."""


def default(name: str = "pixels") -> ConfigDict:
  """The settings for a generator of `generators.catalogue` with the shipped prior; a fresh, unlocked ConfigDict."""
  shared = config_lib.default()
  config = ConfigDict(dict(job="image2d", prompt="a red cube"))  # "A|B": one prompt for each frame, or blends
  for group in COMMON:
    config[group] = shared[group]
  for setting in ("guidance_every", "particles"):  # pictures have `generator.particles`
    del config.training[setting]
  config.loss = ConfigDict(dict(sds=(1.0,)))
  config.generator = _generator()
  config.generator.name = name
  config.distillation.view_words = "none"
  config.distillation.sds.update(guidance_scale=(5.0,), t_max=((0.0, 0.98), (1.0, 0.4)))
  config.optimizer.update(learning_rate=0.05, warmup_steps=10)
  config.training.update(steps=300, views=2, render_every=50)
  config.update_from_flattened_dict(TUNED.get(name, {}))
  return config


def _generator() -> ConfigDict:
  return ConfigDict(dict(
      name="pixels",  # of generators.catalogue.GENERATORS, or package.module:function: the user's own
      size=64,  # side of the images that the prior is shown
      particles=1,  # independent pictures; training.views is a multiple of these times the frames
      viewpoint=(30.0, 25.0),  # azimuth and elevation in degrees, told to a prior that knows cameras; () tells nothing
      pixels=dict(init_std=0.1),
      fourier=dict(decay=1.5, init_std=0.01),
      cppn=dict(hidden=24, depth=6),
      siren=dict(hidden=64, depth=3, w0=30.0),
      shared=dict(frames=3, cutoff=4.0, own=0.5, decay=1.5, init_std=0.01),
      symmetric=dict(of="fourier"),  # with its group's settings; cppn and siren want their own learning rate too
      translucent=dict(noise=0.0, price=100.0, decay=1.5, init_std=0.01),
      texture=dict(shape="cube", extent=0.4, resolution=32, decay=1.0, init_std=0.01),
      gaussians=dict(count=128, radius=0.15)))


TUNED: dict[str, dict[str, Any]] = {
    "cppn": {"optimizer.learning_rate": 5e-3},
    "siren": {"optimizer.learning_rate": 1e-3},
    "shared": {"prompt": "a red cube|a red sphere", "training.views": 3},
    "gaussians": {"optimizer.learning_rate": 0.02},
    "symmetric": {"generator.viewpoint": (0.0, 25.0)},  # from the front, where things are symmetric
    "texture": {"optimizer.learning_rate": 0.1},
}
"""Generator -> settings that its gradients and its speed ask for, by dotted name."""


def from_words(words: str) -> ConfigDict:
  """The settings that "fourier", "fourier,sd15" or "sd15" stand for: at most one generator and one prior.

  Args:
    words: a name of GENERATORS or package.module:function; "shapeworld", a name of `priors.sources.HUB_IDS`, a hub id
      ("owner/name") or a folder.

  Raises:
    ConfigError: a word is neither, or there are two of a kind.
  """
  from sds_jax.training import recipes  # which imports the validation that imports this
  given = [word.strip() for word in words.split(",") if word.strip()]
  names = [word for word in given if word in GENERATORS or ":" in word]
  others = [word for word in given if word not in names]
  if objects := [word for word in others if word in recipes.RECIPES]:
    raise ConfigError(f"{words!r}: {objects[0]} is a recipe of objects, for configs/text.py; pictures take a generator "
                      f"({', '.join(GENERATORS)}, or package.module:function) and a prior")
  if len(names) > 1:
    raise ConfigError(f"{words!r} names more than one generator ({', '.join(names)}): keep one")
  problem = None
  try:
    borrowed = recipes.from_words(",".join(others))
  except ConfigError as error:
    problem = error
  if problem:  # raised out here, for the command tells the error that came first
    raise ConfigError(f"{words!r}: no generator (legal: {', '.join(GENERATORS)}, or package.module:function), and "
                      f"{problem}")
  config = default(names[0] if names else "pixels")
  config.prior = borrowed.prior
  return config
