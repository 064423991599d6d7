"""The source distribution and the wheel: contents, metadata, and the command from an unpacked wheel."""
import configparser
import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from sds_jax import shipped_configs

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IGNORED = shutil.ignore_patterns(".git", ".venv*", "venv*", "runs", "build", "dist", "*.egg-info", "__pycache__",
                                 ".*_cache")


def build(kind, source, folder):
  """Runs a hook of the build backend without network; returns the file."""
  script = (f"from setuptools import build_meta\nimport json, sys\n"
            f"print(json.dumps(build_meta.build_{kind}(sys.argv[1])))")
  done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=source, capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "would be ignored" not in done.stdout + done.stderr  # data in folders that look like packages
  return folder / json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
  """The unpacked source distribution."""
  folder = tmp_path_factory.mktemp("sdist")
  shutil.copytree(ROOT, folder / "source", ignore=IGNORED)
  with tarfile.open(build("sdist", folder / "source", folder)) as archive:
    archive.extractall(folder, filter="data")
  return folder / f"{PROJECT['name']}-{PROJECT['version']}"


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
  """The unpacked wheel, built from the source distribution as `python -m build` does."""
  folder = tmp_path_factory.mktemp("wheel")
  path = build("wheel", sdist, folder)
  assert path.name.endswith("-py3-none-any.whl")
  with zipfile.ZipFile(path) as archive:
    archive.extractall(folder / "site")
  return folder / "site"


@pytest.fixture(scope="module")
def metadata(wheel):
  """The wheel's metadata, parsed."""
  path, = wheel.glob("*.dist-info/METADATA")
  return email.message_from_string(path.read_text(encoding="utf-8"))


def files(folder):
  """Relative paths of the files in a folder, without what Python and tools leave there."""
  paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
  return {path.as_posix() for path in paths
          if not {"__pycache__", ".pytest_cache"} & set(path.parts) and not path.name.startswith(".coverage")}


def test_the_wheel_holds_the_package_and_the_configs_and_nothing_else(wheel):
  expected = ({f"sds_jax/{path}" for path in files(ROOT / "sds_jax")}
              | {f"sds_jax/configs/{path}" for path in files(ROOT / "configs")})
  assert {path for path in files(wheel) if ".dist-info/" not in path} == expected


def test_the_source_distribution_holds_what_the_tests_need(sdist):
  for folder in ("sds_jax", "configs", "tests", ".ci"):
    assert files(sdist / folder) == files(ROOT / folder), folder
  assert {"run.py", "README.md", "LICENSE", "pyproject.toml", "setup.py"} <= files(sdist)


def test_metadata_is_the_projects(metadata):
  assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], PROJECT["version"])
  assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
  classifiers = metadata.get_all("Classifier")
  minimum = int(PROJECT["requires-python"].removeprefix(">=3."))
  supported = [c for c in classifiers if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", c)]
  assert supported == [f"Programming Language :: Python :: 3.{minor}" for minor in range(minimum, 14)]


def test_the_description_shows_no_file_of_the_repository(metadata):
  """An index shows the description without the repository: relative images and links would be broken."""
  text = metadata.get_payload()
  assert metadata["Description-Content-Type"] == "text/markdown" and text.lstrip().startswith("# ")
  targets = re.findall(r"\]\(([^)]*)\)", text)
  assert all(target.startswith(("http:", "https:", "#", "mailto:")) for target in targets), targets


def test_the_console_command_is_there(wheel):
  parser = configparser.ConfigParser()
  parser.read(*wheel.glob("*.dist-info/entry_points.txt"))
  assert dict(parser["console_scripts"]) == PROJECT["scripts"] == {"sds-jax": PROJECT["scripts"]["sds-jax"]}
  assert callable(importlib.metadata.EntryPoint("sds-jax", PROJECT["scripts"]["sds-jax"], "console_scripts").load())


@pytest.mark.parametrize("config", ["configs/text.py", "image2d:fourier"])
def test_an_unpacked_wheel_finds_its_configs_in_any_folder(wheel, tmp_path, config):
  """A refused value shows that the settings were read: it is named with the value that was given."""
  module, function = PROJECT["scripts"]["sds-jax"].split(":")
  script = f"import sds_jax, {module}; print(sds_jax.__file__, flush=True); {module}.{function}()"
  done = subprocess.run([sys.executable, "-c", script, f"--config={config}", "--config.training.steps=-7"],
                        cwd=tmp_path, capture_output=True, text=True, check=False,
                        env={**os.environ, "PYTHONPATH": str(wheel), "PYTHONDONTWRITEBYTECODE": "1"})
  assert Path(done.stdout.strip()) == wheel / "sds_jax" / "__init__.py"
  assert done.returncode == 2 and "training.steps" in done.stderr and "-7" in done.stderr, done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["text", "text.py", "configs/text", "configs/text.py", "./configs/text.py"])
def test_names_of_shipped_configs(path, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert shipped_configs.resolve(path) == str(ROOT / "configs" / "text.py")


@pytest.mark.parametrize("path", ["", "texts", "other/text.py", "configs/none.py", "/configs/text.py", "configs",
                                  "configs/sub/text.py", "text.txt", "a\0b"])
def test_other_paths_are_left_alone(path, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert shipped_configs.resolve(path) == path


@pytest.mark.parametrize("path", ["text.py", "configs/text.py", "text"])
def test_a_users_own_file_comes_first(path, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / path).parent.mkdir(exist_ok=True)
  (tmp_path / path).write_text("")
  assert shipped_configs.resolve(path) == path


def test_every_shipped_config_has_a_name(without_example):
  assert not without_example("sds_jax.shipped_configs")
  assert shipped_configs.names() == sorted(PurePosixPath(path).stem for path in files(ROOT / "configs"))
  assert {"text", "image", "image2d"} <= set(shipped_configs.names())


def test_no_dependency_is_compiled_on_install():
  """All have wheels for Python 3.11 to 3.14 on Linux (x86-64, ARM), macOS (ARM) and Windows, as checked by hand."""
  names = {re.split(r"[><=\[]", line)[0].lower() for line in PROJECT["dependencies"]}
  assert names == {
    "absl-py", "fast-simplification", "filelock", "flax", "huggingface-hub", "jax", "ml-collections", "ml-dtypes",
    "numpy", "optax", "orbax-checkpoint", "pillow", "safetensors", "scikit-image", "scipy", "tensorboardx",
    "tensorstore", "tokenizers", "tqdm", "trimesh"}
