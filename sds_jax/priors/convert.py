"""Writes a prior as a folder of safetensors in diffusers' format.

    python -m sds_jax.priors.convert v1-5-pruned-emaonly.ckpt sd15
    python -m sds_jax.priors.convert zero123-xl.ckpt zero123-xl --ema --dtype=float16
    python -m sds_jax.priors.convert v2-1_768-ema-pruned.safetensors sd21 --prediction_type=v_prediction
    python -m sds_jax.priors.convert sd15 sd15-style --lora=style.safetensors:0.8

The input is whatever names a prior: a single file, a folder (of pickles, say), or a name. The folder appears whole or
not at all. Tensors are written one by one, so memory is that of the largest.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import math
import os
from pathlib import Path
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np

from sds_jax import terminal
from sds_jax.priors.base import Options
from sds_jax.priors.families import family_of, open_folder, read_index
from sds_jax.priors.flags import add_file_options, file_options
from sds_jax.priors.loading import names
from sds_jax.priors.loading.additions import Additions
from sds_jax.priors.loading.checkpoint import Component, open_component
from sds_jax.priors.loading.composed import Composed
from sds_jax.priors.loading.files import LARGEST_TEXT, CheckpointError, check_file, is_there
from sds_jax.priors.loading.finite import check_finite
from sds_jax.priors.loading.hub import INDEX, SCHEDULER
from sds_jax.priors.loading.lora import LABELS
from sds_jax.priors.loading.stored import Stored, changed
from sds_jax.priors.loading.tensor_files import DTYPES, write_safetensors
from sds_jax.priors.overrides import with_networks
from sds_jax.priors.sources import find

_CHOICES = {"stored": "", "float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""{value of --dtype: dtype in safetensors; "": that of each tensor}."""
# 8 bits only make sense with the scales, which are multiplied in; diffusers reads no 64 bits into networks.
_WIDENED = {"F8_E4M3": "F16", "F8_E5M2": "F16", "F64": "F32"}


def convert(name: str, out: Path, options: Options, dtype: str = "stored") -> int:
  """Writes the folder of a prior; returns the bytes of its weights.

  Args:
    name: of the prior, as `sources.find` takes it.
    out: the folder to write; it must not exist, or be empty.
    options: how the prior is opened.
    dtype: of the weights in the files, a key of `_CHOICES`.

  Raises:
    CheckpointError: the prior cannot be read, `out` exists, the disk has no room, or a value is outside the dtype.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise CheckpointError(f"{out} exists: name a folder that does not exist, or an empty one")
  if not out.absolute().parent.is_dir():
    raise CheckpointError(f"{out.absolute().parent} does not exist: name a folder in one that exists")
  source = with_networks(find(name, options.dtype, options=options), options)
  # All parts are compared before anything is written.
  open_folder(source, options)
  index = read_index(source.folder)
  files = family_of(source.folder, index).files(index)
  parts = {**files.components, **{part: kind for part, kind in files.optional.items()
                                  if is_there(source.folder / part)}}
  places = {part: _places(source.folder / part, kind, part, options.additions) for part, kind in parts.items()}
  size = sum(_size(stored, dtype) for stored in places.values())
  free = shutil.disk_usage(out.absolute().parent).free
  if size > free:
    raise CheckpointError(f"{out}: the weights take {size} bytes, and the disk has {free} left")
  small = {INDEX, SCHEDULER, *files.small, *(f"{part}/config.json" for part in parts)}
  # Beside the folder, since a rename is atomic only within one file system.
  temporary = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
  try:
    for relative in sorted(small):
      _copy(source.folder, relative, temporary)
    for part, kind in parts.items():
      _write(temporary / part / f"{kind.stem}.safetensors", places[part], dtype)
    temporary.chmod(0o755)
    os.replace(temporary, out)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return size


def _places(folder: Path | Composed, kind: Component, part: str, additions: Additions) -> dict[str, Stored]:
  """Returns {name in diffusers: where it is stored} of a component's parameters, with the LoRAs merged."""
  model, places = open_component(folder, kind, jnp.float32)
  if part in LABELS:
    places = additions.merged(part, model, places, kind.table)
  return {names.checkpoint_name(path, kind.table): stored for path, stored in places.items()}


def _kind(stored: Stored, dtype: str) -> str:
  return _CHOICES[dtype] or _WIDENED.get(stored.dtype, stored.dtype)


def _size(places: Mapping[str, Stored], dtype: str) -> int:
  return sum(math.prod(stored.shape) * np.dtype(DTYPES[_kind(stored, dtype)]).itemsize for stored in places.values())


def _copy(folder: Path | Composed, relative: str, target: Path) -> None:
  """Copies a small file, where the folder has it."""
  file = folder / relative
  if not is_there(file):
    return
  if not isinstance(file, Composed):
    check_file(file, LARGEST_TEXT)
  (target / relative).parent.mkdir(parents=True, exist_ok=True)
  (target / relative).write_bytes(file.content() if isinstance(file, Composed) else file.read_bytes())


def _write(path: Path, places: Mapping[str, Stored], dtype: str) -> None:
  def read(name: str) -> np.ndarray:
    stored = places[name]
    return check_finite(stored.file, stored.key, changed(stored, stored.read()), np.dtype(DTYPES[_kind(stored, dtype)]))

  write_safetensors(path, {name: (_kind(stored, dtype), stored.shape) for name, stored in sorted(places.items())}, read)
  with open(path, "rb") as file:
    os.fsync(file.fileno())


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  terminal.show_any_text()
  parser = argparse.ArgumentParser(prog="python -m sds_jax.priors.convert",
                                   description="Write a prior as a folder of safetensors in diffusers' format.")
  parser.add_argument("prior", help="a single file, a folder, a name or a hub id")
  parser.add_argument("out", type=terminal.user_path, help="the folder to write; it must not exist")
  parser.add_argument("--dtype", default="stored", choices=tuple(_CHOICES),
                      help="of the weights (default: %(default)s)")
  add_file_options(parser)
  args = parser.parse_args(argv)
  try:
    size = convert(args.prior, args.out, Options(jnp.float32, **file_options(args)), args.dtype)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  print(f"the folder lies in {args.out}; its weights take {size / 1e9:.2f} GB")


if __name__ == "__main__":
  main()
