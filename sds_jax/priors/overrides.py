"""Puts a U-Net or an autoencoder from elsewhere in the place of a prior's own.

The other network is a component's folder (config.json and weights), the folder or the single file of a whole model, or
a file of weights alone, under the names of diffusers or of the original code; or a repository of the Hugging Face hub
with one network. TAESD, a tiny autoencoder, has names.
"""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

from sds_jax.priors.base import Options
from sds_jax.priors.from_file import UNET, VAE, stored_weights, unet_part, vae_part
from sds_jax.priors.loading.checkpoint import open_component
from sds_jax.priors.loading.component_hub import open_from_hub, split_hub_id
from sds_jax.priors.loading.composed import Composed, StoredWeights
from sds_jax.priors.loading.files import CheckpointError, read_json
from sds_jax.priors.loading.single_files import SUFFIXES, check_weights, describe_tensors
from sds_jax.priors.loading.source import Source
from sds_jax.priors.loading.stored import Stored
from sds_jax.priors.loading.tensor_files import Tensor, open_tensors

_ORIGINAL = {"unet": (UNET, "input_blocks.0.0.weight", unet_part), "vae": (VAE, "encoder.down.0.block.0.conv1.weight",
                                                                           vae_part)}
"""{component: (prefix in a whole file, a tensor that tells the original names, function of the part)}."""
_OURS = {"unet": "down_blocks.", "vae": "encoder."}
"""{component: beginning of a name of diffusers}."""
_TINY = "encoder.layers.0.weight"
"""A tensor of TAESD, whose configuration no single file has."""
TINY_VAES = {"taesd": "madebyollin/taesd", "taesdxl": "madebyollin/taesdxl"}
"""Names of tiny autoencoders -> their repositories: for Stable Diffusion 1.x and 2.x, and for XL."""
_KEPT = {"unet": ("sample_size",), "vae": ("sample_size", "scaling_factor", "force_upcast")}
"""{component: values that no tensor tells, which stay the prior's}."""


def with_networks(source: Source, options: Options) -> Source:
  """Returns the source with the networks that `options.unet` and `options.vae` name in place of its own.

  Raises:
    CheckpointError: there is no such file or folder, or it has no such network, or an option of single files is set for
      a folder; one line names the setting.
  """
  if not isinstance(source.folder, Composed):
    for name, unset in (("prediction_type", ""), ("ema", False), ("config", "")):
      if getattr(options, name) != unset:
        raise CheckpointError(f"config.prior.{name}={getattr(options, name)!r} is for single-file checkpoints and has "
                              f"no effect on the folder {source.folder}: set it to {unset!r}")
  for component, path in (("unet", options.unet), ("vae", options.vae)):
    if path:
      try:
        read_json(source.folder / component / "config.json")
      except CheckpointError as error:
        raise CheckpointError(f"config.prior.{component}={path!r} replaces a network that the prior lacks: {error}"
                              ) from error
      place = _fetched(source.folder, component, path, options.dtype)
      source = dataclasses.replace(source, folder=replaced(source.folder, component, path, place))
  return source


def _fetched(folder: Path | Composed, component: str, text: str, dtype: Any) -> Path:
  """Returns the place of another network; a name of TINY_VAES or a hub id is looked up in the cache or fetched.

  Args:
    folder, component, text: as in `replaced`.
    dtype: of the weights that are wanted.
  """
  setting, path = f"config.prior.{component}={text!r}", Path(text).expanduser()
  try:
    present = path.exists()
  except (OSError, ValueError):
    present = False
  repo = TINY_VAES.get(text) if component == "vae" and not present else None
  at = split_hub_id(repo or text)
  if present or at is None or text.endswith(SUFFIXES):
    return path
  if repo:
    # Both have the same shapes, but latents of different meaning.
    wanted = "taesdxl" if "XL" in str(read_json(folder / "model_index.json").get("_class_name")) else "taesd"
    if text != wanted:
      raise CheckpointError(f"{setting} does not fit the prior, whose latents are those of {wanted!r}: set it to "
                            f"{wanted!r}")
  return open_from_hub(setting, (at[0],), at[1], component, dtype,
                       lambda found: (open_component(found, component, dtype), found)[1])


def replaced(folder: Path | Composed, component: str, text: str, place: Path | None = None) -> Composed:
  """Returns the folder with another network as its component.

  Args:
    folder: the prior's folder.
    component: "unet" or "vae".
    text: the file or folder of the other network, as the user names it.
    place: the file or folder; None: `text`.
  """
  setting, path = f"config.prior.{component}={text!r}", place or Path(text).expanduser()
  origin, notes = (folder.origin, folder.notes) if isinstance(folder, Composed) else (folder, ())
  notes = (*notes, f"{component} of {path}, in place of the prior's own")
  if path.is_dir():
    inner = path / component if (path / component / "config.json").is_file() else path
    if not (inner / "config.json").is_file():
      raise CheckpointError(f"{setting}: the folder has no config.json, and no {component}/config.json")
    return Composed(origin, {component: inner}, base=folder, notes=notes)
  try:
    is_file = path.is_file()
  except (OSError, ValueError):
    is_file = False
  if not is_file:
    names = f", and it is none of the names {', '.join(TINY_VAES)}" if component == "vae" else ""
    raise CheckpointError(f"{setting}: there is no such file or folder{names}")
  check_weights(path)
  tensors = open_tensors(path)
  config, weights = _read(path, setting, component, tensors, read_json(folder / component / "config.json"))
  entries = {f"{component}/config.json": json.dumps(config).encode()}
  return Composed(origin, entries, {component: weights}, folder, notes)


def _read(path: Path, setting: str, component: str, tensors: Mapping[str, Tensor],
          present: Mapping[str, Any]) -> tuple[Mapping[str, Any], StoredWeights]:
  """Returns (config.json, weights) of a network in a file.

  Args:
    path, setting, component: of the file.
    tensors: of the file.
    present: config.json of the network that is replaced.
  """
  prefix, mark, make = _ORIGINAL[component]
  for beginning in (prefix, ""):
    if f"{beginning}{mark}" in tensors:
      try:
        part = make(tensors, None, beginning)
      except CheckpointError as error:
        raise CheckpointError(f"{setting}: {error}") from error
      # A network of the same widths is one for the same model, whose configuration tells more than shapes do.
      same = all(present.get(key, value) == value for key, value in part.config.items()
                 if key in ("_class_name", "block_out_channels"))
      kept = {key: present[key] for key in (present if same else _KEPT[component]) if key in present}
      return {**part.config, **kept}, stored_weights(path, tensors, part)
  if not any(name.startswith(_OURS[component]) for name in tensors):
    kind, _ = describe_tensors({name: tensor.shape for name, tensor in tensors.items()})
    raise CheckpointError(f"{setting} is {kind}, and not a file of a {'U-Net' if component == 'unet' else 'VAE'}")
  beside = path.parent / "config.json"
  config = read_json(beside) if beside.is_file() else present
  if component == "vae" and _TINY in tensors and config.get("_class_name") != "AutoencoderTiny":
    config = {"_class_name": "AutoencoderTiny"}
  stored = {name: Stored(path, name, tensor.shape, tensor.read, tensor.dtype) for name, tensor in tensors.items()}
  return config, StoredWeights(path, lambda names: stored)
