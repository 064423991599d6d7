"""Writes the pages of the API reference, one for the public names and one for each folder of the package."""
from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.pycode import ModuleAnalyzer

import sds_jax
from sds_jax.diffusion.estimators import Estimator

FOLDER = Path(__file__).parents[1] / "reference" / "api"
LEFT_OUT = ("torch_",)
"""Modules that need PyTorch, which the documentation does not."""


def modules(package: str) -> list[str]:
  """Returns the names of all modules below a package, and its own, sorted."""
  found = importlib.import_module(package)
  names = [package]
  for info in pkgutil.walk_packages(found.__path__, f"{package}."):
    parts = info.name.split(".")
    if not parts[-1].startswith(("_", *LEFT_OUT)):
      names.append(info.name)
  return sorted(names)


def _title(text: str) -> str:
  return f"{text}\n{'=' * len(text)}\n"


def _comment(name: str) -> list[str]:
  """Returns the text below the definition of a public value that is neither a function nor a class."""
  for module in modules("sds_jax"):
    attributes = ModuleAnalyzer.for_module(module).find_attr_docs()
    if ("", name) in attributes:
      return attributes["", name]
  raise ValueError(f"sds_jax.{name} has no text below its definition")


def _entry(name: str) -> str:
  """Returns the directive of one public name."""
  value = getattr(sds_jax, name)
  if inspect.isclass(value):
    return f".. autoclass:: sds_jax.{name}\n   :members:\n"
  if inspect.isroutine(value) or hasattr(value, "__wrapped__"):
    return f".. autofunction:: sds_jax.{name}\n"
  return f".. py:data:: sds_jax.{name}\n\n" + "".join(f"   {line}\n" for line in _comment(name))


def public_page() -> str:
  """Returns the page of `sds_jax.__all__`."""
  return _title("Public names") + "\n``from sds_jax import ...``\n\n" + "\n".join(map(_entry, sds_jax.__all__))


def package_page(package: str) -> str:
  """Returns the page of all modules of a folder."""
  blocks = [_title(package)]
  for name in modules(package):
    if name != package:
      blocks.append(f"\n{name}\n{'-' * len(name)}\n")
    blocks.append(f"\n.. automodule:: {name}\n   :members:\n")
  return "".join(blocks)


def pages() -> dict[str, str]:
  """Returns the text of every page by its name."""
  found = {"public": public_page()}
  alone = []
  for info in pkgutil.iter_modules(sds_jax.__path__, "sds_jax."):
    if info.ispkg:
      found[info.name.removeprefix("sds_jax.")] = package_page(info.name)
    elif not info.name.startswith("sds_jax._"):
      alone.append(info.name)
  found["top"] = _title("Modules at the top of sds_jax") + "".join(
    f"\n{name}\n{'-' * len(name)}\n\n.. automodule:: {name}\n   :members:\n" for name in alone)
  names = ["public", "top", *sorted(set(found) - {"public", "top"})]
  found["index"] = (_title("API reference") + "\nFrom the docstrings of the package.\n\n.. toctree::\n"
                    "   :maxdepth: 2\n\n" + "".join(f"   {name}\n" for name in names))
  return found


def write(app: Sphinx, config: Config) -> None:
  """Writes the pages that changed and removes those of folders that are gone."""
  FOLDER.mkdir(parents=True, exist_ok=True)
  texts = {f"{name}.rst": text for name, text in pages().items()}
  for path in FOLDER.iterdir():
    if path.name not in texts:
      path.unlink()
  for name, text in texts.items():
    path = FOLDER / name
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
      path.write_text(text, encoding="utf-8")


def skip_records(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
  """Leaves out the records of estimators, whose functions are documented themselves."""
  return True if isinstance(member, Estimator) else None


def setup(app: Sphinx) -> dict[str, bool]:
  """Registers the writing of the pages before the sources are listed."""
  app.connect("config-inited", write)
  app.connect("autodoc-skip-member", skip_records)
  return dict(parallel_read_safe=True, parallel_write_safe=True)
