"""Records of a set of runs, kept in a folder, so that a stopped set goes on where it stopped."""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sds_jax.io import files
from sds_jax.priors.sources import SHIPPED, shipped_folder
from sds_jax.training.versions import versions

Record = dict[str, Any]


class RecordLog:
  """The records of a set in `folder/records.jsonl`, a line each.

  Records of an earlier call are kept if `folder/inputs.json` holds equal inputs. Otherwise they are renamed to
  `records.old.jsonl`.

  Attributes:
    folder: of the records; made if missing.
    records: of earlier calls with equal inputs, then those of `append`.
  """

  def __init__(self, folder: Path, inputs: dict[str, Any]):
    """Reads the records of an earlier call with equal inputs.

    Args:
      folder: of the records.
      inputs: what tells equal sets from others; see `run_inputs`.
    """
    self.folder, self._path = folder, folder / "records.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    inputs = files.to_jsonable(inputs)
    equal = files.read_json(folder / "inputs.json") == inputs
    if not equal and self._path.is_file():
      os.replace(self._path, folder / "records.old.jsonl")
      print(f"{folder} holds records of other settings, weights or versions; they are now in records.old.jsonl",
            flush=True)
    self.records: list[Record] = _complete_lines(self._path) if equal else []
    if self.records:
      print(f"{folder} holds {len(self.records)} runs of equal settings; those are not repeated", flush=True)
    # Rewritten: the last line may be incomplete, and a new line would be appended to it.
    with files.atomic_write(self._path) as file:
      file.write("".join(map(_line, self.records)).encode())
    files.write_json(inputs, folder / "inputs.json")

  def find(self, **values: Any) -> Record | None:
    """Returns the record that has all `values`, or None."""
    return next((record for record in self.records if values.items() <= record.items()), None)

  def append(self, record: Record) -> None:
    """Adds a record to the list and to the file."""
    self.records.append(record)
    with open(self._path, "a", encoding="utf-8") as file:
      file.write(_line(record))


def _line(record: Record) -> str:
  return json.dumps(files.to_jsonable(record)) + "\n"


def _complete_lines(path: Path) -> list[Record]:
  """Returns the records of a file; an incomplete last line, of a call that was killed, is left out."""
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
  try:
    return [json.loads(line) for line in lines if line.endswith("\n")]
  except ValueError as error:
    raise files.DamagedFileError(f"{path} has a line that is not JSON; delete the file, and the runs are "
                                 "repeated") from error


def run_inputs(config: dict[str, Any], prior: str) -> dict[str, Any]:
  """Returns settings, versions and a digest of the prior's weights, as they are written to JSON.

  Args:
    config: the settings of a task, as `schema.to_dict` gives them.
    prior: name, folder or file of the prior.
  """
  return files.to_jsonable(dict(config=config, versions=versions(), prior=_fingerprint(prior)))


def _fingerprint(name: str) -> str:
  """Returns a digest of the weights of a prior's U-Net, or of a single file.

  The prior is a shipped one, or that of a folder or file.
  """
  digest, path = hashlib.sha256(), shipped_folder(name) if name in SHIPPED else Path(name)
  # By content, because a folder of the same name may hold newly trained weights.
  for weights in [path] if path.is_file() else sorted(path.glob("unet/*.safetensors")):
    with open(weights, "rb") as file:
      digest.update(hashlib.file_digest(file, "sha256").digest())
  return digest.hexdigest()[:16]
