"""Fetches one network from a repository of the Hugging Face hub that holds only this network, as a ControlNet."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
import re
from typing import Any, TypeVar

from sds_jax.priors.loading import hub as hub_lib
from sds_jax.priors.loading.checkpoint import COMPONENTS, reads_configs_only
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.hub import INDEX, Files, Hub, Unavailable, choose_files

T = TypeVar("T")

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def split_hub_id(name: str) -> tuple[str, str] | None:
  """Returns (repository, revision) of a hub id, or None for another text.

  >>> split_hub_id("madebyollin/taesd"), split_hub_id("madebyollin/taesd@v1"), split_hub_id("taesd")
  (('madebyollin/taesd', 'main'), ('madebyollin/taesd', 'v1'), None)
  """
  match = _HUB_ID.fullmatch(name)
  return (match["repo"], match["revision"] or "main") if match else None


def open_from_hub(named: str, repos: Sequence[str], revision: str, component: str, dtype: Any,
                  open_folder: Callable[[Path], T], hub: Hub | None = None) -> T:
  """Opens the first of several repositories with a copy in the cache, else the first that can be fetched.

  Within `checkpoint.configs_only` config.json is fetched and no weights.

  Args:
    named: the network for messages, such as "the ControlNet 'depth'".
    repos: repositories with the same weights, the likeliest first.
    revision: branch, tag or commit.
    component: a key of `checkpoint.COMPONENTS`.
    dtype: of the weights that are wanted; for 16 bits, files of 16 bits are preferred.
    open_folder: (folder) -> the network; raises CheckpointError for a folder that is incomplete.
    hub: the model hub and its local cache (None: those of huggingface_hub).

  Raises:
    CheckpointError: no repository has the network; one line says why.
  """
  hub = hub or hub_lib.default_hub()
  for repo in repos:
    for folder in hub.cached(repo, revision):
      try:
        return open_folder(folder)
      except CheckpointError:
        continue  # an incomplete copy, such as one without weights
  problems = []
  for repo in repos:
    try:
      return open_folder(_fetch(repo, revision, component, dtype, hub))
    except (Unavailable, CheckpointError) as error:
      problems.append(f"{repo}: {error}")
      # Without a connection, or with a full disk, the other repositories would fail in the same way.
      if isinstance(error, Unavailable) and error.everywhere:
        break
  raise CheckpointError(f"{named} can't be had: {'; '.join(problems)}. A folder or file of it that you have can be "
                        "named instead")


def _fetch(repo: str, revision: str, component: str, dtype: Any, hub: Hub) -> Path:
  """Downloads config.json and, outside of `configs_only`, one set of weights; returns their folder."""
  listed = hub.list_files(repo, revision)
  if "config.json" not in listed:
    raise Unavailable("it is no network in diffusers' format: there is no config.json")
  folder = hub.fetch(repo, revision, ["config.json"])
  if reads_configs_only():
    return folder
  # `choose_files` wants a prior's layout, so the network stands as the only one of a prior.
  chosen = choose_files([INDEX, *(f"{component}/{name}" for name in listed if "/" not in name)],
                        Files({component: COMPONENTS[component]}), dtype)
  names = [name.removeprefix(f"{component}/") for name in chosen if name.startswith(f"{component}/")]
  print(f"fetching {len(names)} files of {repo} ...", flush=True)
  return hub.fetch(repo, revision, names)
