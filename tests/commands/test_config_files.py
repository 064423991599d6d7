"""The settings files that ship: each returns the settings of its words."""
from pathlib import Path

import pytest

from sds_jax import settings
from sds_jax.commands import config_file
from sds_jax.settings.recipes import image2d, image3d, text3d

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name, words, from_words", [
  ("text", "shapeworld", text3d.from_words), ("text", "dreamfusion,sd15", text3d.from_words),
  ("text", "my_module:make", text3d.from_words), ("image", "shapeworld-views", image3d.from_words),
  ("image", "zero123,owner/name", image3d.from_words), ("image2d", "pixels", image2d.from_words),
  ("image2d", "siren,sd15", image2d.from_words)])
def test_words(name, words, from_words):
  config = config_file.load(f"{CONFIGS / name}.py:{words}")
  assert config.to_dict() == from_words(words).to_dict()


@pytest.mark.parametrize("name, task", [("text", "text3d"), ("image", "image3d"), ("image2d", "image2d")])
def test_without_words(name, task):
  assert isinstance(settings.validate(config_file.load(f"{CONFIGS / name}.py")), settings.TREES[task])
