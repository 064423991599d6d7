"""The families of priors, in one table; a new family is a module here and an entry in FAMILIES."""
from __future__ import annotations

import dataclasses
from pathlib import Path

from sds_jax.priors.base import Config, Family, Options, Prior, Weights
from sds_jax.priors.controlnets import SD1_CONTROLNET
from sds_jax.priors.families.deepfloyd import DEEPFLOYD
from sds_jax.priors.families.mvdream import MVDREAM
from sds_jax.priors.families.sdxl import SDXL
from sds_jax.priors.families.shapeworld import SHAPEWORLD, SHAPEWORLD_VIEWS
from sds_jax.priors.families.stable_diffusion import STABLE_DIFFUSION
from sds_jax.priors.families.zero123 import ZERO123
from sds_jax.priors.loading.checkpoint import check_configs, config_error
from sds_jax.priors.loading.files import CheckpointError, read_json
from sds_jax.priors.loading.recognise import describe_hub_id, describe_pipeline
from sds_jax.priors.loading.single_files import describe_folder
from sds_jax.priors.loading.source import Source
from sds_jax.priors.loading.variants import check_variant
from sds_jax.priors.networks.config_check import FLAG, MAX_WIDTH, ValueRule, check_values, optional, shown, whole

FAMILIES: list[Family] = [STABLE_DIFFUSION, SDXL, DEEPFLOYD, ZERO123, MVDREAM, SHAPEWORLD, SHAPEWORLD_VIEWS]
"""A folder belongs to the first family that matches its model_index.json."""

_TEXTS = ValueRule("a list of texts",
                   lambda value: isinstance(value, list) and all(isinstance(part, str) for part in value))
_LEGAL: dict[str, ValueRule] = {
  "camera_dim": whole(0, MAX_WIDTH), "ray_dim": whole(0, MAX_WIDTH), "patch_tokens": FLAG,
  "views": whole(1, 64),
  "vocabulary": optional(_TEXTS), "captions": ValueRule(
    "an object of the lists of texts `colours`, `shapes` and `stackable`", lambda value: (
      isinstance(value, dict) and all(_TEXTS.test(value.get(key)) for key in ("colours", "shapes", "stackable"))))}
"""{key of a model_index.json: legal values}."""


def read_index(folder: Path) -> Config:
  """Returns the content of a folder's model_index.json, `_class_name` as one text.

  Pipelines with code of their own have a list there, [module, class]; the class counts.

  Raises:
    CheckpointError: the file is missing (the message says what the folder holds instead), damaged, or without a class.
  """
  path = folder / "model_index.json"
  if folder.is_dir() and not path.exists() and not path.is_symlink():
    raise CheckpointError(f"{path} does not exist{describe_folder(folder)}")
  index = read_json(path)
  name = index.get("_class_name")
  if isinstance(name, list) and len(name) == 2 and all(isinstance(part, str) for part in name):
    # Only the name counts; code that the folder brings is never run.
    index = {**index, "_class_name": name[1]}
  elif name is not None and not isinstance(name, str):
    raise CheckpointError(f"{path}: _class_name={shown(name)} should be the name of a pipeline's class, or a list of "
                          "its module and its class")
  try:
    check_values("model_index.json", index, _LEGAL)
  except ValueError as error:
    raise CheckpointError(f"{path}: {error}") from error
  return index


def open_folder(source: Source, options: Options) -> tuple[Prior, Weights]:
  """Opens the prior in a folder, by the family of its model_index.json; reads no weights.

  Raises:
    CheckpointError: the folder or a file in it is missing or wrong; the message names the file.
  """
  index = read_index(source.folder)
  family = family_of(source.folder, index)
  check_controlnet(family, source.name, options)
  try:
    files = family.files(index)
    # Values first: tracing a network with a hostile width could take all memory or time.
    check_configs(source.folder, {**files.components, **files.optional})
    options.additions.check(family.takes_additions, f"the prior {source.name!r}, a model of {family.name},")
    check_variant(source.folder, files.components, options.variant)
    prior, weights = family.open(source, index, options)
  except CheckpointError:
    raise
  except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
    raise config_error(source.folder / "model_index.json", error) from error
  check_image_size(family, prior, options)
  return dataclasses.replace(prior, notes=(*prior.notes, *options.additions.describe())), weights


def check_image_size(family: Family, prior: Prior, options: Options) -> None:
  """Raises CheckpointError when the family has not followed the caller's choice of the images' size."""
  if options.image_size not in (0, prior.image_size):
    raise CheckpointError(f"config.prior.image_size={options.image_size} has no effect on the prior {prior.name!r}, a "
                          f"model of {family.name} whose images have {prior.image_size}x{prior.image_size} pixels: set "
                          "it to 0")


def check_controlnet(family: Family, name: str, options: Options) -> None:
  """Raises CheckpointError if a ControlNet is wanted of a prior that takes none.

  Args:
    family: of the prior.
    name: of the prior, for the message.
    options: the caller's choices.
  """
  if options.controlnet and not family.takes_controlnet:
    raise CheckpointError(f"the prior {name!r} of the family {family.name} takes no ControlNet, here "
                          f"{options.controlnet.name!r}; supported: priors of Stable Diffusion 1.x, such as sd15")


def takes_controlnet(name: str) -> bool | None:
  """Returns whether a prior in the package or a published one takes a ControlNet; None: only its files can tell.

  Args:
    name: of the prior, or a hub id.
  """
  for family in FAMILIES:
    if name in family.shipped:
      return family.takes_controlnet
    for listed, prior in family.published.items():
      if name == listed or name in prior.repos:
        # By the width of the text: one family has several versions of Stable Diffusion.
        width = prior.configs["unet"].get("cross_attention_dim")
        return family.takes_controlnet and width == SD1_CONTROLNET["cross_attention_dim"]
  return None


def family_of(folder: Path, index: Config) -> Family:
  """Returns the family of a folder with the given model_index.json.

  Raises:
    CheckpointError: no family matches; the message lists the supported layouts.
  """
  for family in FAMILIES:
    if family.matches(index):
      return family
  name = index.get("_class_name")
  kind = describe_pipeline(name)
  raise CheckpointError(f"{folder / 'model_index.json'}: _class_name={shown(name)}{f' ({kind})' if kind else ''} is "
                        f"not supported; supported: {layouts()}")


def layouts() -> str:
  """Returns the folders that the families open, for errors."""
  # Families share layouts, and each is listed once, in order.
  return ", ".join(dict.fromkeys(family.layout for family in FAMILIES))


def refuse_known(repo: str) -> None:
  """Raises CheckpointError for a hub id that is known to hold a model of no family, before anything is fetched."""
  if kind := describe_hub_id(repo):
    raise CheckpointError(f"the prior {repo!r} is {kind}, which is not supported; supported: {layouts()}")


def family_of_published(name: str) -> Family | None:
  """Returns the family that lists a published prior of this name; None where no family does."""
  return next((family for family in FAMILIES if name in family.published), None)


def family_of_shipped(name: str) -> Family | None:
  """Returns the family that lists a prior of this name in the package; None where no family does."""
  return next((family for family in FAMILIES if name in family.shipped), None)
