"""The words behind the colon of --config=FILE:WORDS."""
from __future__ import annotations

from ml_collections import ConfigDict

from sds_jax.priors import sources
from sds_jax.schema import ConfigError
from sds_jax.settings.common import concerns_fields, flat
from sds_jax.settings.generator import is_users_own
from sds_jax.settings.trees import TREES


def split(words: str) -> list[str]:
  """Returns the words between commas, without blanks.

  >>> split(" dreamfusion , sd15")
  ['dreamfusion', 'sd15']
  """
  return [word.strip() for word in words.split(",") if word.strip()]


def is_generator(word: str) -> bool:
  """Returns whether a word is a generator of the user's own, package.module:function."""
  # A folder of a prior may have a colon in its path.
  return is_users_own(word) and not sources.is_name(word)


def take_generator(words: str) -> tuple[str | None, str]:
  """Returns a generator of the user's own, or None, and the other words.

  The generator has the form package.module:function; the other words are joined again.

  Raises:
    ConfigError: there are two generators.

  >>> take_generator("sd15,my_module:make")
  ('my_module:make', 'sd15')
  """
  given = split(words)
  generators = [word for word in given if is_generator(word)]
  if len(generators) > 1:
    raise ConfigError(f"{words!r} names more than one generator ({', '.join(generators)}): keep one")
  return (generators[0] if generators else None), ",".join(word for word in given if word not in generators)


def use_generator(config: ConfigDict, name: str) -> None:
  """Chooses a 3D representation of the user's own.

  Settings of fields, which have no effect on such a representation, get their defaults.
  """
  config.generator.name = name
  own = flat(TREES[config.job]())
  config.update_from_flattened_dict({setting: value for setting, value in own.items() if concerns_fields(setting)})
