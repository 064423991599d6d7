"""The families of priors, in one table; a new family is a module here and an entry in FAMILIES."""
from __future__ import annotations

from pathlib import Path

from sds_jax.priors.base import Config, Family
from sds_jax.priors.families.deepfloyd import DEEPFLOYD
from sds_jax.priors.families.shapeworld import SHAPEWORLD, SHAPEWORLD_VIEWS
from sds_jax.priors.families.stable_diffusion import STABLE_DIFFUSION
from sds_jax.priors.families.zero123 import ZERO123
from sds_jax.priors.loading.files import CheckpointError

FAMILIES: list[Family] = [STABLE_DIFFUSION, DEEPFLOYD, ZERO123, SHAPEWORLD, SHAPEWORLD_VIEWS]
"""A folder belongs to the first family that matches its model_index.json."""


def family_of(folder: Path, index: Config) -> Family:
  """Returns the family of a folder with the given model_index.json.

  Raises:
    CheckpointError: no family matches; the message lists the supported layouts.
  """
  for family in FAMILIES:
    if family.matches(index):
      return family
  layouts = ", ".join(dict.fromkeys(family.layout for family in FAMILIES))
  raise CheckpointError(f"{folder / 'model_index.json'}: _class_name={index.get('_class_name')!r} is not supported; "
                        f"supported: {layouts}")


def family_of_published(name: str) -> Family | None:
  """Returns the family that lists a published prior of this name; None where no family does."""
  return next((family for family in FAMILIES if name in family.published), None)


def family_of_shipped(name: str) -> Family | None:
  """Returns the family that lists a prior of this name in the package; None where no family does."""
  return next((family for family in FAMILIES if name in family.shipped), None)
