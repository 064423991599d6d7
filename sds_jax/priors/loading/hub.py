"""The Hugging Face hub, as far as priors need it: which files there are, which of them to fetch, what went wrong."""
from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
import errno
from pathlib import Path
import re
from typing import Any

import jax.numpy as jnp

from sds_jax.priors.loading.checkpoint import (COMPONENTS, NO_PICKLES, PICKLES, VARIANTS, index_names, variant_name,
                                               weight_files)
from sds_jax.priors.loading.files import CheckpointError, read_json

PROJECTIONS = ("clip_camera_projection", "cc_projection")
"""Published and our own name of the component that only priors have that are told a picture."""
_NEEDED = {True: ("unet", "image_encoder"), False: ("unet", "text_encoder")}
"""Folders with weights, by whether a prior is told a picture; those that are also have one of PROJECTIONS."""
_OPTIONAL = ("vae", "elevation_head")

STEMS = {name: COMPONENTS[kind].stem for name, kind in (
  ("unet", "unet"), ("text_encoder", "clip_text"), ("vae", "vae"), ("image_encoder", "image_encoder"),
  *((name, "cc_projection") for name in PROJECTIONS), ("elevation_head", "elevation_head"))}
"""Folders with weights in a prior's folder -> how the weight files in them are called. A text encoder's are called the
same whichever it is."""

_SMALL = re.compile(r"model_index\.json|scheduler/scheduler_config\.json")
_INPUTS = {True: re.compile(r"feature_extractor/preprocessor_config\.json"),
           False: re.compile(r"tokenizer/(vocab|merges|tokenizer|tokenizer_config|special_tokens_map|added_tokens)"
                             r"\.(json|txt)|tokenizer/spiece\.model")}
"""Files that say how what a prior is told goes in, by whether it is a picture."""
_TOKENIZERS = (("vocab.json", "merges.txt"), ("tokenizer.json",), ("spiece.model",))
"""Files that a tokenizer is made of, CLIP's and T5's; one of these sets has to be there."""
_NO_ANSWER = {"ConnectError", "ConnectionError", "ConnectTimeout", "LocalEntryNotFoundError", "NetworkError",
              "OfflineModeIsEnabled", "ProxyError", "ReadTimeout", "Timeout", "TimeoutException"}


class Unavailable(Exception):
  """A repository's files can't be had; the message says why and what to do.

  Attributes:
    everywhere: whether other repositories would fail in the same way.
  """

  def __init__(self, message: str, everywhere: bool = False):
    super().__init__(message)
    self.everywhere = everywhere


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

  def cached(self, repo: str, revision: str) -> Path | None:
    """The folder of a revision (branch, tag or commit) in the local cache; it may lack files. None: there is none."""
    base = self.cache / f"models--{repo.replace('/', '--')}"
    ref = base / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    folder = base / "snapshots" / commit
    return folder if folder.is_dir() else None


def default_hub() -> Hub:
  """huggingface.co (or $HF_ENDPOINT) through huggingface_hub, with its cache and its login."""
  import huggingface_hub  # only here: it takes a while, and most runs don't need it
  from huggingface_hub import constants

  def ask(repo: str, call: Callable[[], Any]) -> Any:
    try:
      return call()
    except Exception as error:  # the errors of two HTTP libraries, by its version, beside its own
      raise explain(error, repo) from error

  def list_files(repo: str, revision: str) -> list[str]:
    info = ask(repo, lambda: huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=20))
    return [file.rfilename for file in info.siblings]

  def fetch(repo: str, revision: str, files: list[str]) -> Path:
    return Path(ask(repo, lambda: huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=files)))

  return Hub(Path(constants.HF_HUB_CACHE), list_files, fetch)


def explain(error: BaseException, repo: str) -> Unavailable:
  """What a failed request means, by the error's class and the status of the answer."""
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
    return Unavailable("the hub can't be reached (no connection, or HF_HUB_OFFLINE is set); fetch the model where it "
                       f"can, with `hf download {repo}`", everywhere=True)
  return Unavailable(" ".join(f"{type(error).__name__}: {error}".split())[:300])


def choose_files(names: Iterable[str], dtype: Any) -> list[str]:
  """Of a repository's files those that a prior is read from: one set of weights for each network, and small files.

  Args:
    names: of all files.
    dtype: in which the weights are wanted: 16 bits prefer the variants of 16 bits, 32 bits the full ones.

  Raises:
    Unavailable: a network or its safetensors are missing, or, of a prior that is told a text, a tokenizer that can be
      read, or model_index.json.
  """
  names = sorted(names)
  if "model_index.json" not in names:
    raise Unavailable("it is no model in diffusers' format: there is no model_index.json")
  there = {name.split("/")[0] for name in names if "/" in name}
  projection = next((name for name in PROJECTIONS if name in there), None)
  sighted = projection is not None or "image_encoder" in there and "text_encoder" not in there
  needed = (*_NEEDED[sighted], *((projection or PROJECTIONS[0],) if sighted else ()))
  lacking = [folder for folder in needed if folder not in there]
  if lacking:
    raise Unavailable(f"there is no {'/, no '.join(lacking)}/")
  if not sighted and not _has_tokenizer(names, "tokenizer/"):
    raise Unavailable(f"tokenizer/ has nothing that is read: neither {_said(_TOKENIZERS, ' nor ')}")
  half = jnp.dtype(dtype).itemsize == 2
  folders = [*needed, *(folder for folder in _OPTIONAL if folder in there)]
  configs = {f"{folder}/config.json" for folder in folders}
  chosen = [name for name in names if name in configs or _SMALL.fullmatch(name) or _INPUTS[sighted].fullmatch(name)]
  for folder in folders:
    own = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
    sets = (_weights(own, STEMS[folder], variant) for variant in ((*VARIANTS, "") if half else ("", *VARIANTS)))
    weights = next(filter(None, sets), None)
    if not weights:
      pickles = [name for name in own if Path(name).suffix in PICKLES]
      raise Unavailable(f"{folder}/ has no {STEMS[folder]}.safetensors"
                        + (f", only {', '.join(pickles)}; {NO_PICKLES}" if pickles else ""))
    chosen += [f"{folder}/{name}" for name in weights]
  return chosen


def _has_tokenizer(names: Iterable[str], prefix: str = "") -> bool:
  names = set(names)
  return any(all(prefix + name in names for name in needed) for needed in _TOKENIZERS)


def _said(sets: Iterable[tuple[str, ...]], join: str) -> str:
  return join.join(" with ".join(needed) for needed in sets)


def _weights(names: list[str], stem: str, variant: str) -> list[str]:
  """The file, or the shards and their index, of one variant among the files of a component; [] if there are none."""
  whole = variant_name(f"{stem}.safetensors", variant)
  if whole in names:
    return [whole]
  index = [name for name in index_names(stem, variant) if name in names]
  shard = re.compile(re.escape(f"{stem}.{variant}" if variant else stem) + r"-\d+-of-\d+\.safetensors")
  return [name for name in names if shard.fullmatch(name)] + index if index else []


def missing_files(folder: Path) -> list[str]:
  """What a prior's folder lacks, as after a download that was broken off; [] when it is whole."""
  wanted = [folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"]
  index = read_json(wanted[0]) if wanted[0].is_file() else {}
  projection = next((name for name in PROJECTIONS if name in index), None)
  sighted = projection is not None
  for name in (*_NEEDED[sighted], *filter(None, [projection]), *(name for name in _OPTIONAL if name in index)):
    wanted.append(folder / name / "config.json")
    try:
      wanted += weight_files(folder / name, STEMS[name]) if (folder / name).is_dir() else []
    except CheckpointError:  # none at all, or no index to tell which
      wanted.append(folder / name / f"{STEMS[name]}.safetensors")
  tokenizer = folder / "tokenizer"
  if not sighted and not tokenizer.is_dir():
    wanted.append(tokenizer)
  elif not sighted and not _has_tokenizer(path.name for path in tokenizer.iterdir() if path.exists()):
    wanted.append(tokenizer / _said(_TOKENIZERS, " or "))
  return [str(path.relative_to(folder)) for path in wanted if not path.exists()]
