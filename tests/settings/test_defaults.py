"""Defaults and recipes are those of before the settings were typed."""
import pytest

from sds_jax import schema, settings
from sds_jax.generators import catalogue, surfaces
from sds_jax.io import photos
from sds_jax.settings import generator, photo
from sds_jax.settings.recipes import image2d, image3d, text3d

RECIPES = {"text3d": text3d, "image3d": image3d, "image2d": image2d}
_PRIOR = {"prior.variant": "", "prior.image_size": 0, "prior.prediction_type": "", "prior.ema": False,
          "prior.config": "", "prior.unet": "", "prior.vae": "", "prior.original_size": (0, 0), "prior.crop": (0, 0),
          "prior.target_size": (0, 0), "prior.controlnet": "", "prior.controlnet_kind": "auto",
          "prior.controlnet_scale": 1.0, "prior.lora": (), "prior.embeddings": (), "distillation.rescale_space": "eps"}
_OBJECT = _PRIOR | {"generator.name": "field", "camera.group": "auto", "camera.relative": False,
                    "export.faces": 20_000, "export.texture_size": 1024, "export.formats": ("glb", "obj"),
                    "export.scale": 1.0}
NEW = {"text3d": _OBJECT,
       "image3d": _OBJECT | {"words.prediction_type": "", "words.lora": (), "words.embeddings": ()},
       "image2d": _PRIOR}
"""Settings that there were not then."""


@pytest.mark.parametrize("task", settings.TREES)
def test_defaults_are_those_of_before(frozen, flatten, task):
  assert flatten(settings.TREES[task]()) == frozen["defaults"][task] | NEW[task]


@pytest.mark.parametrize("task", settings.TREES)
def test_a_config_is_read_back_as_it_was(task):
  tree = settings.TREES[task]()
  assert schema.read(tree, settings.defaults(task), relations=False) == tree


def read(config):
  return schema.read(settings.reference(config), config, relations=False)


@pytest.mark.parametrize("task", settings.TREES)
def test_runs_stored_before_can_be_used_again(stored, task):
  """Their constants are [v], their open values [], and they lack the settings that are new."""
  config = settings.defaults(task)
  for name, value in stored["defaults"][task].items():
    *groups, last = name.split(".")
    target = config
    for group in groups:
      target = target[group]
    target[last] = tuple(value) if isinstance(value, list) else value
  assert settings.validate(config) == settings.validate(settings.defaults(task))


@pytest.mark.parametrize("task", settings.TREES)
def test_words_stand_for_the_settings_of_before(frozen, flatten, task):
  before = frozen["defaults"][task] | NEW[task]
  for words, changes in frozen["words"][task].items():
    assert flatten(read(RECIPES[task].from_words(words))) == before | changes, words


def test_legal_names_are_those_of_the_reader_of_photos():
  assert photo.FRAMINGS == photos.FRAMINGS and photo.BACKGROUND_METHODS == photos.BACKGROUND_METHODS


def test_legal_names_are_those_of_the_generators():
  assert set(generator.PLAIN) == set(catalogue.WRAPPABLE) and generator.SOLIDS == tuple(surfaces.SURFACES)
  groups = {field.name for field in schema.dataclasses.fields(generator.ImageGeneratorSettings)
            if "legal" not in field.metadata}
  assert set(generator.IMAGE_GENERATORS) == set(catalogue.GENERATORS) == groups


def test_scheduled_settings(flatten):
  """The settings that may change over a run, and no others."""
  expected = {f"loss.{name}" for name in ("sds", "orientation", "opacity", "entropy")} | {
    "field.paper_mlp.variance", "field.hashgrid.open_levels"} | {f"distillation.{name}" for name in (
      "guidance_scale", "t_min", "t_max", "guidance_rescale", "perp_neg_scale", "clip_norm", "sds.guidance_scale",
      "sds.t_min", "sds.t_max", "csd.negative_weight", "ism.delta_t", "sdi.inversion", "cds.clip", "hifa.image_weight")}
  tree = settings.TREES["text3d"]()

  def scheduled(group, prefix=""):
    for field in schema.dataclasses.fields(group):
      value = getattr(group, field.name)
      if schema.is_group(value):
        yield from scheduled(value, f"{prefix}{field.name}.")
      elif field.metadata["legal"].scheduled:
        yield prefix + field.name

  assert set(scheduled(tree)) == expected
