"""The command in this process and in another one, with the tiny prior."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def as_flags(settings):
  return [f"--config.{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="session")
def tiny_flags(tiny_settings):
  """The tiny settings as a user types them; a blob that is large and dense enough to have a surface."""
  return as_flags({**tiny_settings, "field.blob_radius": 0.6, "field.blob_scale": 60.0})


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
  """Where the processes of this session keep compiled steps for each other."""
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def start(cache_home):
  """(*arguments) -> the running process `python run.py --config=configs/text.py *arguments`, output captured."""
  def begin(*arguments, config=("--config=configs/text.py",), **options):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache_home), "JAX_PLATFORMS": "cpu",
                   "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **options}
    environment.pop("SDS_JAX_TRACEBACK", None)
    return subprocess.Popen([sys.executable, "run.py", *config, *arguments], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  return begin


@pytest.fixture
def coarse_scores(monkeypatch):
  """Scores on a coarse grid, at two rotations and one scale."""
  from sds_jax.evaluation import scores
  monkeypatch.setattr(scores, "VOLUME_GRID", 16)
  monkeypatch.setattr(scores, "ROTATIONS", 2)
  monkeypatch.setattr(scores, "SCALES", (1.0,))


@pytest.fixture
def command(call_main, monkeypatch):
  """(*arguments) -> (exit status, stdout, stderr) of the command called in this process."""
  from sds_jax.commands import main
  monkeypatch.delenv("SDS_JAX_TRACEBACK", raising=False)
  monkeypatch.chdir(ROOT)
  return lambda *arguments: call_main(main.main, "run.py", *arguments)
