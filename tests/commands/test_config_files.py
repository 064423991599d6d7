"""The settings files that ship: each returns the settings of its words."""
from pathlib import Path

import pytest

from sds_jax import settings
from sds_jax.commands import config_file, flags
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


def write(path, *lines):
  head = ["import sys", "import numpy as np", "from ml_collections import ConfigDict, FrozenConfigDict",
          "from sds_jax import settings", "def get_config():", "  config = settings.defaults('image2d')"]
  path.write_text("\n".join([*head, *(f"  {line}" for line in lines), "  return config"]), encoding="utf-8")
  return str(path)


def test_what_a_file_may_return(tmp_path):
  path = write(
      tmp_path / "x.py", "config.distillation.guidance_scale = np.float32(7.5)",
      "config.distillation.t_max = np.array([[0, 0.9], [1, 0.5]])", "config.loss.sds = np.int64(2)",
      "config.optimizer.learning_rate = np.float64(0.1)", "config = FrozenConfigDict(config)")
  read = settings.validate(flags.parse(["run.py", f"--config={path}", "--config.seed=3"]).config)
  d = read.distillation
  assert (d.guidance_scale, d.t_max, read.loss.sds, read.seed) == (7.5, ((0, 0.9), (1, 0.5)), 2.0, 3)
  assert all(type(value) is float for value in (d.guidance_scale, read.loss.sds))


@pytest.mark.parametrize("line, parts", [
  ("sys.exit()", ("SystemExit", "line 7 of")), ("sys.exit(0)", ("SystemExit", "line 7 of")),
  ("raise GeneratorExit", ("GeneratorExit", "line 7 of")), ("return None", ("returns NoneType", "ConfigDict")),
  ("async def get(): pass\n  return get()", ("returns coroutine", "ConfigDict")),
  ("return dict(config)", ("returns dict", "ConfigDict")), ("del config.prior", ("config.prior is missing",)),
  ("del config.prior.path", ("config.prior.path is missing",)),
  ("config.prior = ConfigDict()", ("config.prior.name is missing",))])
def test_a_file_with_a_mistake(tmp_path, line, parts):
  with pytest.raises((config_file.UsageError, settings.ConfigError)) as caught:
    path = write(tmp_path / "x.py", line)
    settings.validate(flags.parse(["run.py", f"--config={path}", "--config.prior.path=x"]).config)
  assert all(part in str(caught.value) for part in parts), caught.value
