"""Names of priors, and where their files are: in the package, in a folder, or on the Hugging Face hub.

A published prior is looked up in several repositories, since such repositories move and vanish. A complete copy in the
local cache is taken without a connection; else the needed files, and no others, are fetched.
"""
from __future__ import annotations

from collections.abc import Callable
from importlib import resources
import os
from pathlib import Path
import re
from typing import Any

from sds_jax.priors import families
from sds_jax.priors.base import Options, Prior
from sds_jax.priors.families import (family_of, family_of_published, family_of_shipped, open_folder, read_index,
                                     refuse_known)
from sds_jax.priors.families.mvdream import MVDREAM
from sds_jax.priors.families.zero123 import is_stable_zero123 as is_stable_zero123
from sds_jax.priors.from_file import compose
from sds_jax.priors.loading.checkpoint import configs_only
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.hub import (INDEX, Hub, Unavailable, choose_files, default_hub, download_command,
                                         is_weights, missing_files)
from sds_jax.priors.loading.single_files import SUFFIXES, check_weights, describe_names, kind_of
from sds_jax.priors.loading.source import Source as Source
from sds_jax.priors.loading.tensor_files import open_tensors

HUB_IDS: dict[str, tuple[str, ...]] = {
  name: prior.repos for family in families.FAMILIES for name, prior in family.published.items()}
"""Names of published priors -> repositories with the same weights, the likeliest first."""

SHIPPED: dict[str, str] = {name: folder for family in families.FAMILIES for name, folder in family.shipped.items()}
"""Names of the priors in this package -> their folders below `sds_jax`."""

SHIPPED_VIEWS = "shapeworld-views"
"""The prior in this package that is conditioned on a photo."""

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def shipped_folder(name: str = "shapeworld") -> Path:
  """Returns the folder of a prior in this package."""
  return Path(str(resources.files("sds_jax"))) / SHIPPED[name]


def is_name(word: str) -> bool:
  """Returns whether a word can name a prior.

  A prior in this package, a published prior, one on the hub, or an existing folder.

  So can the name of a weights file, for which `find` says what the file is.
  """
  # A slash can only be told apart as hub id or path by looking, which `find` does.
  if word in SHIPPED or word in HUB_IDS or "/" in word or word.endswith(SUFFIXES):
    return True
  return os.path.isdir(os.path.expanduser(word))  # `Path.is_dir` raises for names that are too long


def is_small(name: str) -> bool:
  """Returns whether a prior is of ShapeWorld's size, before any file is fetched.

  Args:
    name: a name, a hub id (False) or a folder.

  Raises:
    CheckpointError: the folder's model_index.json cannot be read.
  """
  if name in SHIPPED:
    return family_of_shipped(name).small
  index = Path(os.path.expanduser(name)) / INDEX
  if not os.path.isfile(index):
    return False
  content = read_index(index.parent)
  return any(family.small and family.matches(content) for family in families.FAMILIES)


def views_of(name: str) -> int:
  """Returns the number of views of an object that a prior looks at together, before any file is fetched.

  Args:
    name: a name, a hub id, a folder or a single-file checkpoint. 1 for one that only its files on the hub can tell, and
      for a file that is not read, which opening the prior explains.

  Raises:
    CheckpointError: the folder's model_index.json cannot be read.
  """
  published = next((listed for listed, repos in HUB_IDS.items() if name in repos), name)
  if family := family_of_published(published):
    return family.views
  path = shipped_folder(name) if name in SHIPPED else Path(os.path.expanduser(name))
  if name.endswith(SUFFIXES) and _is_file(path):
    try:
      shapes = {key: tensor.shape for key, tensor in open_tensors(path).items()}
    except CheckpointError:
      return 1
    return MVDREAM.views if kind_of(shapes) == "MVDream" else 1
  if not os.path.isfile(path / INDEX):
    return 1
  content = read_index(path)
  family = next((family for family in families.FAMILIES if family.matches(content)), None)
  return content.get("views", family.views) if family else 1


def takes_pictures(name: str) -> bool | None:
  """Returns whether a prior is conditioned on a photo.

  Fetches no file. None: only the prior's files can tell.
  """
  # A hub id of a published prior is of that prior's family.
  listed = next((listed for family in families.FAMILIES for listed, prior in family.published.items()
                 if name in (*prior.repos, *prior.former)), name)
  family = family_of_shipped(name) or family_of_published(listed)
  return family.takes_photo if family else None


def published_names(pictures: bool) -> list[str]:
  """Returns the names in HUB_IDS of priors conditioned on a photo, or else of priors conditioned on a prompt."""
  return [name for name in HUB_IDS if takes_pictures(name) == pictures]


def find(name: str, dtype: Any, hub: Hub | None = None, check: Callable[[Prior], None] = lambda prior: None,
         options: Options | None = None) -> Source:
  """Returns the source of a prior; downloads missing files.

  Args:
    name: a name in SHIPPED, a folder, a single-file checkpoint, a name in HUB_IDS, or a hub id.
    dtype: of the weights that are wanted; for 16 bits, files of 16 bits are preferred.
    hub: the model hub and its local cache (None: those of huggingface_hub, with its environment variables).
    check: (prior, opened without weights) -> None; called before weights are fetched, and may raise any error.
    options: by which a single file or `check`'s prior is opened, and which variant of the weights is wanted; None:
      `Options(dtype)`.

  Raises:
    CheckpointError: the prior does not exist or cannot be downloaded; one line names the reason and the remedy.
  """
  try:
    folder = shipped_folder(name) if name in SHIPPED else Path(name).expanduser()
  except RuntimeError as error:  # "~somebody" whom this machine doesn't know
    raise CheckpointError(f"the prior {name!r}: {error}") from error
  if os.path.isdir(folder):
    # Errors name files by their folder, and "." vanishes from a path.
    return _describe(name, folder.absolute() if folder == Path() else folder)
  if _is_file(folder):
    check_weights(folder)
    return Source(name, compose(folder, options or Options(dtype)))
  if name.endswith(SUFFIXES):
    raise CheckpointError(f"the prior {name!r}: there is no such file")
  if name in SHIPPED:
    raise CheckpointError(f"the prior {name!r} is not in this installation: {folder} does not exist")
  # A folder goes before a hub id, since both have the form owner/name.
  match = _HUB_ID.fullmatch(name)
  if name not in HUB_IDS and not match:
    raise CheckpointError(f"the prior {name!r} is neither a name ({', '.join(map(repr, [*SHIPPED, *HUB_IDS]))}) "
                          "nor a folder that exists nor a hub id ('owner/name')")
  if match and name not in HUB_IDS:
    refuse_known(match["repo"])
  revision = match["revision"] if match and match["revision"] else "main"
  stored, fetched = _repositories(name, match["repo"] if match else "", revision)
  return _from_hub(name, stored, fetched, revision, options or Options(dtype), hub or default_hub(), check)


def _repositories(name: str, repo: str, revision: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the repositories whose copies in the cache will do, and those that may be fetched, the likeliest first.

  Repositories of a published prior have the same weights, so that the cache of any of them will do. A hub id is fetched
  from its own repository, unless that is gone for good.

  Args:
    name: as the user gave it.
    repo: "owner/name" of a hub id.
    revision: of the hub id; only "main" is the same in all repositories of a prior.
  """
  for prior in (prior for family in families.FAMILIES for prior_name, prior in family.published.items()
                if prior_name == name or repo in (*prior.repos, *prior.former) and revision == "main"):
    if not repo:
      return (*prior.repos, *prior.former), prior.repos
    stored = tuple(dict.fromkeys((repo, *prior.repos, *prior.former)))
    return stored, prior.repos if repo in prior.former else (repo,)
  return (repo,), (repo,)


def _is_file(path: Path) -> bool:
  """Returns whether a file is there.

  Names that no file can have count as absent.
  """
  try:
    return path.is_file()
  except (OSError, ValueError):
    return False


def _from_hub(name: str, stored: tuple[str, ...], fetched: tuple[str, ...], revision: str, options: Options, hub: Hub,
              check: Callable[[Prior], None]) -> Source:
  """Returns the first of `stored` with a complete copy in the cache, else the first of `fetched` that answers."""
  lacking: dict[str, tuple[Path, list[str]]] = {}
  for repo in stored:
    for folder in hub.cached(repo, revision):
      absent = missing(folder, options.variant)
      # The cache names the folder of a snapshot after its commit.
      if not absent:
        return Source(name, folder, repo, folder.name)
      lacking.setdefault(repo, (folder, absent))
  problems = []
  for repo in fetched:
    try:
      folder = _fetch(name, repo, revision, options, hub, check)
      return Source(name, folder, repo, folder.name)
    except (Unavailable, CheckpointError) as error:
      where, absent = lacking.get(repo, (None, []))
      also = f" (of an earlier download {', '.join(absent[:3])} is missing in {where})" if absent else ""
      command = download_command(repo, options.dtype, options.variant)
      advice = (f"; fetch it where it can be reached, with `{command}`"
                + (", without .fp16 if it has no such files" if ".fp16" in command else ""))
      problems.append(f"{repo}: {error}{also}{advice if getattr(error, 'offline', False) else ''}")
      # Without a connection, or with a full disk, the other repositories would fail in the same way.
      if isinstance(error, Unavailable) and error.everywhere:
        break
  here = "" if name in HUB_IDS else f"there is no folder {name!r} here, and from the hub "
  raise CheckpointError(f"the prior {name!r} can't be had: {here}{'; '.join(problems)}. A folder or single file of "
                        "it that you have can be named instead: --config.prior.path=PATH")


def _fetch(name: str, repo: str, revision: str, options: Options, hub: Hub, check: Callable[[Prior], None]) -> Path:
  """Downloads the files that the repository's family reads; returns their folder.

  The small files come first. All that they say is checked before the weights, which may be gigabytes, are asked for.
  """
  names = hub.list_files(repo, revision)
  if INDEX not in names:
    raise Unavailable(f"it is no model in diffusers' format: there is no {INDEX}{describe_names(names)}")
  folder = hub.fetch(repo, revision, [INDEX])  # says which family, and so which files
  index = read_index(folder)
  chosen = choose_files(names, family_of(folder, index).files(index), options.dtype, options.variant)
  small = [file for file in chosen if not is_weights(file)]
  # Weights are left for later: `check` may refuse the prior, and they may be gigabytes.
  folder = hub.fetch(repo, revision, small)
  with configs_only():
    check(open_folder(Source(name, folder, repo, folder.name), options)[0])
  print(f"fetching {len(chosen)} files of {repo} ...", flush=True)
  folder = hub.fetch(repo, revision, chosen)
  lacking = missing(folder, options.variant)
  if lacking:
    raise Unavailable(f"the download left out {', '.join(lacking)}; run it again")
  return folder


def missing(folder: Path, variant: str = "") -> list[str]:
  """Returns the files that a folder lacks (`hub.missing_files`)."""
  if not (folder / INDEX).is_file():
    return [INDEX]
  index = read_index(folder)
  return missing_files(folder, index, family_of(folder, index).files(index), variant)


def _describe(name: str, folder: Path) -> Source:
  """Returns the source of a folder, with repository and commit, when the folder is in a hub cache."""
  # The layout of a hub cache: models--OWNER--NAME/snapshots/COMMIT.
  if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
    repo = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return Source(name, folder, repo, folder.name)
  return Source(name, folder)
