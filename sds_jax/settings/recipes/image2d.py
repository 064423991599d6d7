"""The settings that suit each generator of images, and the settings of a few words: `fourier,sd15`."""
from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from sds_jax.schema import ConfigError
from sds_jax.settings.generator import IMAGE_GENERATORS
from sds_jax.settings.recipes import text3d
from sds_jax.settings.recipes.words import is_generator, split
from sds_jax.settings.trees import defaults

TUNED: dict[str, dict[str, Any]] = {
    "cppn": {"optimizer.learning_rate": 5e-3},
    "siren": {"optimizer.learning_rate": 1e-3},
    "shared": {"prompt": "a red cube|a red sphere", "training.views": 3},
    "gaussians": {"optimizer.learning_rate": 0.02},
    "symmetric": {"generator.viewpoint": (0.0, 25.0)},  # from the front, where things are symmetric
    "texture": {"optimizer.learning_rate": 0.1},
}
"""Generator -> settings for its gradients and its speed, by dotted name."""

_LEGAL = f"{', '.join(IMAGE_GENERATORS)}, or package.module:function"


def of_generator(name: str = "pixels") -> ConfigDict:
  """Returns the settings for a generator with the shipped prior.

  The `ConfigDict` is fresh and unlocked.

  Args:
    name: of IMAGE_GENERATORS, or package.module:function.
  """
  config = defaults("image2d")
  config.generator.name = name
  config.update_from_flattened_dict(TUNED.get(name, {}))
  return config


def from_words(words: str) -> ConfigDict:
  """Returns the settings of a few words: at most one generator and one prior.

  "fourier", "fourier,sd15" and "sd15" are such words.

  Args:
    words: a name of IMAGE_GENERATORS or package.module:function; "shapeworld", a name of `sources.HUB_IDS`, a hub id
      ("owner/name") or a folder.

  Raises:
    ConfigError: a word is neither, or there are two of a kind.
  """
  given = split(words)
  names = [word for word in given if word in IMAGE_GENERATORS or is_generator(word)]
  others = [word for word in given if word not in names]
  if recipes := [word for word in others if word in text3d.RECIPES]:
    raise ConfigError(f"{words!r}: {recipes[0]} is a recipe of objects, for configs/text.py; images take a generator "
                      f"({_LEGAL}) and a prior")
  if len(names) > 1:
    raise ConfigError(f"{words!r} names more than one generator ({', '.join(names)}): keep one")
  config = of_generator(names[0] if names else "pixels")
  config.prior = _prior_of(words, others)
  return config


def _prior_of(words: str, others: list[str]) -> ConfigDict:
  """Returns the group `prior` of text-to-3D for the words that name no generator."""
  problem = None
  try:
    return text3d.from_words(",".join(others)).prior
  except ConfigError as error:
    problem = error
  # Raised out here, for the command reports the error that came first.
  raise ConfigError(f"{words!r}: no generator (legal: {_LEGAL}), and {problem}")
