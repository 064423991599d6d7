"""The Hugging Face hub: list a repository, choose the files that a prior needs, fetch them, explain failures."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import errno
from pathlib import Path
import re
from typing import Any

import jax.numpy as jnp

from sds_jax.priors.loading.checkpoint import Component
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.single_files import describe_names
from sds_jax.priors.loading.variants import names_inside, variant_problem
from sds_jax.priors.loading.weight_files import (PICKLES, VARIANTS, index_names, pickle_name, variant_name,
                                                 weight_files, weight_names)

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
"""Files of every prior."""

_NO_ANSWER = {"ConnectError", "ConnectionError", "ConnectTimeout", "LocalEntryNotFoundError", "NetworkError",
              "OfflineModeIsEnabled", "ProxyError", "ReadTimeout", "Timeout", "TimeoutException"}


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of a prior's folder that a family reads, beside INDEX and SCHEDULER.

  Attributes:
    components: {folder: component}; each folder has config.json and one set of weights.
    optional: like `components`; a prior may lack these folders.
    small: further files, relative to the prior's folder, which are fetched where they exist.
    tokenizers: sets of file names; one set must be complete in each of `tokenizer_folders`. (): the family needs no
      tokenizer.
    tokenizer_folders: the folders of its tokenizers.
  """
  components: Mapping[str, Component]
  optional: Mapping[str, Component] = dataclasses.field(default_factory=dict)
  small: frozenset[str] = frozenset()
  tokenizers: tuple[tuple[str, ...], ...] = ()
  tokenizer_folders: tuple[str, ...] = ("tokenizer",)


class Unavailable(Exception):
  """A repository's files cannot be fetched; the message names the reason and the remedy.

  Attributes:
    everywhere: whether other repositories would fail in the same way.
    offline: whether the files could be fetched by a machine with a connection (`download_command`).
  """

  def __init__(self, message: str, everywhere: bool = False, offline: bool = False):
    super().__init__(message)
    self.everywhere, self.offline = everywhere, offline


@dataclasses.dataclass(frozen=True)
class Hub:
  """A model hub and its local cache; the two functions raise Unavailable.

  Attributes:
    cache: folder of the local cache, in huggingface_hub's layout.
    list_files: (repo, revision) -> names of all files.
    fetch: (repo, revision, files) -> the folder `cache/models--.../snapshots/<commit>` with these files.
  """
  cache: Path
  list_files: Callable[[str, str], list[str]]
  fetch: Callable[[str, str, list[str]], Path]

  def cached(self, repo: str, revision: str) -> list[Path]:
    """Returns the folders in the local cache that may be a revision (branch, tag or commit), the likeliest first.

    Where the cache does not record which commit is the branch "main", as after a download of one commit, every stored
    commit may be, the newest download first. The folders may be incomplete.
    """
    # Versions of diffusers before 0.14 had a cache of their own, with the same layout.
    return [folder for cache in (self.cache, self.cache.parent / "diffusers")
            for folder in _snapshots(cache / f"models--{repo.replace('/', '--')}", revision)]


def _snapshots(base: Path, revision: str) -> list[Path]:
  """Returns the folders of a repository in a cache that may be a revision, the likeliest first."""
  # huggingface_hub writes the commit of a branch or tag into refs/.
  ref = base / "refs" / revision
  try:
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    folder = base / "snapshots" / commit
    if commit and folder.is_dir():
      return [folder]
    if revision != "main" or ref.is_file():
      return []
    folders = [path for path in (base / "snapshots").iterdir() if path.is_dir()]
    # The newest download is the likeliest to be the present branch.
    return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
  except (OSError, ValueError):  # no such cache, or a damaged one
    return []


def default_hub() -> Hub:
  """Returns huggingface.co (or $HF_ENDPOINT) through huggingface_hub, with its cache and its login."""
  import huggingface_hub  # imported here because the import is slow and most runs don't need it
  from huggingface_hub import constants

  def ask(repo: str, call: Callable[[], Any]) -> Any:
    try:
      return call()
    except Exception as error:  # huggingface_hub's errors, and those of its HTTP library, of which there are two
      raise explain(error, repo) from error

  def list_files(repo: str, revision: str) -> list[str]:
    info = ask(repo, lambda: huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=20))
    return [file.rfilename for file in info.siblings]

  def fetch(repo: str, revision: str, files: list[str]) -> Path:
    return Path(ask(repo, lambda: huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=files)))

  return Hub(Path(constants.HF_HUB_CACHE), list_files, fetch)


def explain(error: BaseException, repo: str) -> Unavailable:
  """Returns the explanation of a failed request, by the error's class and the status of the answer."""
  kinds = {kind.__name__ for kind in type(error).__mro__}
  status = getattr(getattr(error, "response", None), "status_code", None)
  if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
    return Unavailable("the disk is full; make room, or set HF_HOME to a folder on a larger disk, and run it again: it "
                       "goes on where it stopped", everywhere=True)
  if "RevisionNotFoundError" in kinds:
    return Unavailable("there is no such revision")
  if "RepositoryNotFoundError" in kinds and "GatedRepoError" not in kinds or status == 404:
    return Unavailable("there is no such repository any more, or it is private")
  if "GatedRepoError" in kinds or status in (401, 403):
    return Unavailable(f"access is restricted; accept the licence at https://huggingface.co/{repo} and log in with "
                       "`hf auth login` (or `huggingface-cli login`), or set HF_TOKEN")
  if status is not None:
    return Unavailable(f"the hub answered with status {status}; try again later")
  if kinds & _NO_ANSWER:
    return Unavailable("the hub can't be reached (no connection, or HF_HUB_OFFLINE is set)", everywhere=True,
                       offline=True)
  return Unavailable(" ".join(f"{type(error).__name__}: {error}".split())[:300])


_UNREAD = ("safety_checker/*", "watermarker/*", "vae_1_0/*")
"""Folders of weights in published repositories that no family reads."""


def download_command(repo: str, dtype: Any, variant: str = "") -> str:
  """Returns a command that fetches the files of a prior, and not the other formats and variants of its weights.

  Args:
    repo: "owner/name".
    dtype: of the weights that are wanted; for 16 bits the variant fp16.
    variant: of the weights, besides.

  >>> download_command("a/b", "float32").split(" --")[0]
  'hf download a/b'
  """
  half = ".fp16" if jnp.dtype(dtype).itemsize == 2 else ""
  weights = [f"*/{stem}{half}{shard}.safetensors" for stem in ("diffusion_pytorch_model", "model")
             for shard in ("", "-0*")]
  weights += [f"*/*.{variant}.safetensors", f"*/*.{variant}-0*.safetensors"] if variant else []
  included, excluded = (" ".join(f'"{pattern}"' for pattern in patterns) for patterns in (
    ("*.json", "*/merges.txt", "*/spiece.model", *weights), _UNREAD))
  return f"hf download {repo} --include {included} --exclude {excluded}"


def choose_files(names: Iterable[str], files: Files, dtype: Any, variant: str = "") -> list[str]:
  """Returns the files to fetch: one set of weights for each network, and the small files.

  Args:
    names: all files of the repository.
    files: the files that the family reads.
    dtype: of the weights that are wanted: 16 bits prefer the variants of 16 bits, 32 bits the full files.
    variant: of the weights, before all others; the first network must have it.

  Raises:
    Unavailable: the repository lacks model_index.json, a network, a network's safetensors, the variant or a tokenizer.
  """
  names = sorted(names)
  if INDEX not in names:
    raise Unavailable(f"it is no model in diffusers' format: there is no {INDEX}{describe_names(names)}")
  folders = {name.split("/")[0] for name in names if "/" in name}
  lacking = [folder for folder in files.components if folder not in folders]
  if lacking:
    raise Unavailable(f"there is no {'/, no '.join(lacking)}/")
  for folder in files.tokenizer_folders:
    inside = {name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")}
    if not _has_tokenizer(inside, files):
      raise Unavailable(f"{folder}/ has nothing that is read: expected {_list_tokenizers(files)}")
  components = {**files.components, **{name: part for name, part in files.optional.items() if name in folders}}
  small = {INDEX, SCHEDULER, *files.small, *(f"{folder}/config.json" for folder in components)}
  chosen = [name for name in names if name in small]
  # Half the download where 16 bits are enough; full precision first where they are not.
  halves = VARIANTS[::-1] if jnp.dtype(dtype) == jnp.float16 else VARIANTS
  variants = (*halves, "") if jnp.dtype(dtype).itemsize == 2 else ("", *halves)
  inside_of = {folder: [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
               for folder in components}
  if problem := variant_problem(inside_of, files.components, variant):
    raise Unavailable(problem)
  for folder, component in components.items():
    candidates = weight_names(component.stem, variant, variants)
    weights = next(filter(None, (_weights(inside_of[folder], name, kind) for name, kind in candidates)), None)
    if not weights:
      raise Unavailable(f"{folder}/ has no {component.stem}.safetensors and no {pickle_name(component.stem)}")
    chosen += [f"{folder}/{name}" for name in weights]
  return chosen


def _has_tokenizer(names: set[str], files: Files) -> bool:
  return not files.tokenizers or any(names.issuperset(needed) for needed in files.tokenizers)


def _list_tokenizers(files: Files) -> str:
  return " or ".join(" with ".join(needed) for needed in files.tokenizers)


def is_weights(name: str) -> bool:
  """Returns whether a file of a repository holds weights, which may be gigabytes."""
  return Path(name).suffix in (".safetensors", *PICKLES)


def _weights(names: list[str], name: str, variant: str) -> list[str]:
  """Returns the file, or the shards and their index, of one variant of a component's weights; [] without such."""
  whole, (stem, suffix) = variant_name(name, variant), name.rsplit(".", 1)
  if whole in names:
    return [whole]
  index = [entry for entry in index_names(name, variant) if entry in names]
  shard = re.compile(re.escape(f"{stem}.{variant}" if variant else stem) + rf"-\d+-of-\d+\.{suffix}")
  return [entry for entry in names if shard.fullmatch(entry)] + index if index else []


def missing_files(folder: Path, index: Mapping[str, Any], files: Files, variant: str = "") -> list[str]:
  """Returns the files that a prior's folder lacks, as after an interrupted download; [] for a complete folder.

  Args:
    folder: the prior's folder.
    index: its model_index.json; names the optional components that the prior has.
    files: the files that the family reads.
    variant: of the weights; the first network must have it.
  """
  wanted = [folder / INDEX, folder / SCHEDULER]
  # The index says which optional networks the prior has, so that a half-finished download is noticed.
  optional = {name: component for name, component in files.optional.items() if name in index}
  if variant and variant_problem(names_inside(folder, files.components), files.components, variant):
    first, component = next(iter(files.components.items()))
    wanted.append(folder / first / variant_name(f"{component.stem}.safetensors", variant))
  for name, component in {**files.components, **optional}.items():
    wanted.append(folder / name / "config.json")
    try:
      wanted += weight_files(folder / name, component.stem, variant) if (folder / name).is_dir() else []
    except CheckpointError:  # no weights, or a damaged index of shards
      wanted.append(folder / name / f"{component.stem}.safetensors")
  for tokenizer in (folder / name for name in files.tokenizer_folders if files.tokenizers):
    if not tokenizer.is_dir():
      wanted.append(tokenizer)
    elif not _has_tokenizer({path.name for path in tokenizer.iterdir() if path.exists()}, files):
      wanted.append(tokenizer / _list_tokenizers(files))
  return [str(path.relative_to(folder)) for path in wanted if not path.exists()]
