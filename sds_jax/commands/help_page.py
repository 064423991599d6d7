"""The text of --help: the forms of the command, its flags, and the settings of a task."""
from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from sds_jax import schema, settings, shipped_configs
from sds_jax.commands import config_file

_USED_MOST = (
    "prompt", "image", "prompts_file", "negative_prompt", "seed", "workdir", "resume", "prior.name", "prior.path",
    "distillation.estimator", "distillation.guidance_scale", "training.steps", "training.views",
    "training.render_every", "optimizer.learning_rate", "generator.name", "generator.size", "render.height",
    "render.width", "field.name", "picture.elevation_deg", "export.mesh_resolution", "export.image_size")
"""Settings of the short page, in this order; those that the task has not are left out."""

_WIDTH = 110

_FORMS = """usage: run.py --config=FILE[:WORDS] [--config.NAME=VALUE ...] [--workdir=FOLDER]
       run.py --mode=export|render|evaluate --workdir=FOLDER [--config.NAME=VALUE ...]

  run.py --config=configs/text.py --config.prompt="a red cube"
  run.py --config=configs/image.py --config.image=photo.png
  run.py --mode=export --workdir=runs/a-red-cube-0 --config.export.mesh_resolution=192
"""


def text(specification: str | None, modes: Sequence[str], everything: bool) -> str:
  """Returns the page of help.

  Args:
    specification: value of --config, whose settings are shown; None or a file that does not work: those of text-to-3D.
    modes: values of --mode.
    everything: whether all settings are listed, or only those that are used most.
  """
  tree = _tree(specification)
  rows = {row.name: row for row in schema.describe(tree)}
  files = [f"configs/{name}.py ({meaning})" for name, meaning in shipped_configs.MEANINGS.items()]
  parts = [
      _FORMS, "flags:",
      _entry("--config=FILE[:WORDS]", f"file of settings: {', '.join(files)}, or one of your own; WORDS: a recipe, a "
             "prior, or both, such as sd15"),
      _entry("--config.NAME=VALUE", "a setting, see below"),
      _entry("--mode=MODE", f"{', '.join(modes)}; all but train need the --workdir of a run"),
      _entry("--workdir=FOLDER", "folder of the run; runs/<prompt or photo>-<seed> where not given"),
      _entry("--flagfile=FILE", "a text file with a flag a line"),
      _entry("--coordinator=HOST:PORT", "address of process 0, for a job of several processes"),
      _entry("--num_processes=N", "how many processes there are, with --coordinator"),
      _entry("--process_id=I", "the number of this process, from 0 on"),
      _entry("--distributed", "ask the cluster for the other processes (Google Cloud TPU slices)"),
      _entry("--verbosity=N", "of the log; with 0 libraries log warnings and errors, too"), ""]
  if everything:
    return "\n".join([*parts, f"settings of {tree.job}:", *_all(rows.values())])
  count = sum(row.legal is not None for row in rows.values())
  groups = ", ".join(name for name, row in rows.items() if row.legal is None and "." not in name)
  return "\n".join([
      *parts, f"settings of {tree.job} that are used most, with their defaults:",
      *(_setting(rows[name]) for name in _USED_MOST if name in rows), "",
      textwrap.fill(f"--helpfull lists all {count} settings, in the groups {groups}; with --config=FILE those of the "
                    "file's task.", _WIDTH)])


def _tree(specification: str | None) -> Any:
  try:
    # Help is shown even where the file is broken, by the default tree.
    return settings.reference(config_file.load(specification)) if specification else settings.TREES["text3d"]()
  except ValueError:
    return settings.TREES["text3d"]()


def _all(rows: Any) -> Iterator[str]:
  for row in rows:
    if row.legal is None:
      yield f"\n{row.name}: {row.meaning}"
    else:
      legal = row.legal.replace(schema.SCHEDULED_FORM, "scheduled, values")
      yield _entry(f"{row.name}={row.default!r}", f"{row.meaning} [{legal}]")


def _setting(row: Any) -> str:
  return _entry(f"--config.{row.name}={row.default if row.default != '' else '...'}", row.meaning)


def _entry(name: str, meaning: str) -> str:
  indent = 34
  lines = textwrap.wrap(meaning, _WIDTH - indent) or [""]
  head = f"  {name:{indent - 3}} " if len(name) <= indent - 3 else f"  {name}\n{'':{indent}}"
  return head + f"\n{'':{indent}}".join(lines)
