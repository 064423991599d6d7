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


@pytest.mark.parametrize("line, moved", [
  ("from sds_jax.training import recipes", True), ("import sds_jax.training.validation", True),
  ("from sds_jax import Generator", True), ("import no_such_module", False)])
def test_a_file_that_imports_what_has_moved(tmp_path, line, moved):
  (tmp_path / "old.py").write_text(f"{line}\n", encoding="utf-8")
  with pytest.raises(config_file.UsageError, match="line 1 of") as caught:
    config_file.load(str(tmp_path / "old.py"))
  assert ("settings and recipes are now in sds_jax.settings" in str(caught.value)) == moved
