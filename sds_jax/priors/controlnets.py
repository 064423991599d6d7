"""Opening a ControlNet of Stable Diffusion 1.x: a folder, a single file, or a repository of the Hugging Face hub."""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
from pathlib import Path
from typing import Any

from sds_jax.priors.loading.checkpoint import (COMPONENTS, Stored, abstract_params, config_error, locate,
                                               open_component)
from sds_jax.priors.loading.component_hub import open_from_hub, split_hub_id
from sds_jax.priors.loading.controlnet_names import PREFIX, original_table
from sds_jax.priors.loading.files import CheckpointError, read_json
from sds_jax.priors.loading.hub import Hub
from sds_jax.priors.loading.single_files import SUFFIXES, check_weights, describe_file
from sds_jax.priors.loading.tensor_files import open_tensors
from sds_jax.priors.networks.config_check import shown
from sds_jax.priors.networks.controlnet import ControlNetModel
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.types import Array, Params

DEPTH, NORMAL, IMAGE = "depth", "normal", "image"
KINDS = (DEPTH, NORMAL)
"""Kinds of images that a render can give a ControlNet; IMAGE stands for one that the caller has."""

HUB_IDS: dict[str, tuple[str, ...]] = {
  DEPTH: ("lllyasviel/control_v11f1p_sd15_depth",), NORMAL: ("lllyasviel/control_v11p_sd15_normalbae",)}
"""Names of published ControlNets -> their repositories."""

SD1_CONTROLNET: dict[str, Any] = dict(
  in_channels=4, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, attention_head_dim=8,
  down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], cross_attention_dim=768,
  conditioning_embedding_out_channels=[16, 32, 96, 256])
"""Configuration of the ControlNets of Stable Diffusion 1.x, for single files, which have none."""

_SHARED = ("in_channels", "block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim")
"""Fields in which a ControlNet must equal its U-Net."""
_WIDTHS = {1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclasses.dataclass(frozen=True)
class ControlNetChoice:
  """The caller's choice of a ControlNet.

  Attributes:
    name: a name of HUB_IDS, a folder, a file, or a hub id "owner/name", perhaps "owner/name@revision".
    kind: of the images that the ControlNet reads: a name of KINDS, or IMAGE.
    scale: factor of the residuals, diffusers' `controlnet_conditioning_scale`.
  """
  name: str
  kind: str = IMAGE
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class ControlNet:
  """An opened ControlNet, without its parameters.

  Attributes:
    choice: by which it was opened.
    network: computes the residuals.
    places: where each parameter is stored; {} before weights are fetched, and for random weights.
  """
  choice: ControlNetChoice
  network: ControlNetModel
  places: Mapping[tuple[str, ...], Stored] = dataclasses.field(default_factory=dict)

  def residuals(self, params: Params, z_t: Array, t: Array, text: Array, image: Array) -> tuple[Array, ...]:
    """Returns the scaled residuals for `UNet2DConditionModel`.

    Args:
      params: of the network.
      z_t: [B, *x_shape].
      t: [B] integer.
      text: [B, T, D].
      image: [B, f H, f W, 3] in [0, 1].
    """
    scale = self.choice.scale
    return tuple(scale * one for one in self.network.apply({"params": params}, z_t, t, text, image))


def kind_of_name(name: str) -> str:
  """Returns the kind of the images that a ControlNet reads, by its name; "" where the name does not tell.

  >>> kind_of_name("lllyasviel/control_v11p_sd15_normalbae"), kind_of_name("/models/canny")
  ('normal', '')
  """
  # The last part alone: a folder "depth-and-normals/" may hold several.
  last = Path(name.split("@")[0]).name.lower()
  kinds = [kind for kind in KINDS if kind in last]
  return kinds[0] if len(kinds) == 1 else ""


def open_controlnet(choice: ControlNetChoice, dtype: Any, hub: Hub | None = None) -> ControlNet:
  """Opens a ControlNet from headers; downloads missing files.

  Within `checkpoint.configs_only` no weights are fetched.

  Args:
    choice: of the caller.
    dtype: of the network's activations, and of the weights that are wanted.
    hub: the model hub and its local cache (None: those of huggingface_hub).

  Raises:
    CheckpointError: the ControlNet does not exist, cannot be downloaded or is not supported; one line says why.
  """
  folder = Path(os.path.expanduser(choice.name))
  repos = HUB_IDS.get(choice.name)
  if repos is None and folder.is_dir():
    # A pipeline's folder has its ControlNet one level down.
    inside = folder / "controlnet"
    return _of_folder(choice, inside if not (folder / "config.json").exists() and inside.is_dir() else folder, dtype)
  if repos is None and (folder.is_file() or choice.name.endswith(SUFFIXES)):
    return _of_file(choice, folder, dtype)
  at = split_hub_id(choice.name)
  if repos is None and not at:
    raise CheckpointError(f"the ControlNet {choice.name!r} is neither a name ({', '.join(map(repr, HUB_IDS))}) nor a "
                          "folder or file that exists nor a hub id ('owner/name')")
  repo, revision = at or ("", "main")
  return open_from_hub(f"the ControlNet {choice.name!r}", repos or (repo,), revision, "controlnet", dtype,
                       lambda found: _of_folder(choice, found, dtype), hub)


def random_controlnet(choice: ControlNetChoice, config: Mapping[str, Any], dtype: Any) -> ControlNet:
  """Returns a ControlNet of the shapes of `config`; reads no file."""
  return ControlNet(choice, ControlNetModel.from_config(config, dtype=dtype))


def check_fits(control: ControlNet, unet: UNet2DConditionModel, image_size: int, latent_size: int) -> None:
  """Raises CheckpointError when a ControlNet does not fit a prior.

  Args:
    control: the ControlNet.
    unet: of the prior.
    image_size: height and width of the prior's images, which are also those of the ControlNet's images.
    latent_size: height and width of the prior's latents.
  """
  named, network = f"the ControlNet {control.choice.name!r}", control.network
  for field in _SHARED:
    own, wanted = getattr(network, field), getattr(unet, field)
    if own != wanted:
      raise CheckpointError(f"{named} does not fit the prior: its {field} is {own}, that of the prior's U-Net "
                            f"{wanted}; take a ControlNet and a prior of Stable Diffusion 1.x")
  if network.factor * latent_size != image_size or network.conditioning_channels != 3:
    raise CheckpointError(f"{named} reads images of {network.factor * latent_size} pixels and "
                          f"{network.conditioning_channels} channels, expected {image_size} and 3")


def _of_folder(choice: ControlNetChoice, folder: Path, dtype: Any) -> ControlNet:
  config = read_json(folder / "config.json")
  if config.get("_class_name", "ControlNetModel") != "ControlNetModel":
    raise CheckpointError(f"{folder / 'config.json'}: _class_name={shown(config['_class_name'])} is no ControlNet; "
                          "supported: 'ControlNetModel'")
  return ControlNet(choice, *open_component(folder, "controlnet", dtype))


def _of_file(choice: ControlNetChoice, file: Path, dtype: Any) -> ControlNet:
  """Opens a single file, with the names of diffusers or of the original."""
  check_weights(file)
  shapes = {name: tensor.shape for name, tensor in open_tensors(file).items()}
  original = next((prefix for prefix in (PREFIX, "") if f"{prefix}input_hint_block.0.weight" in shapes), None)
  if original is None and "controlnet_cond_embedding.conv_in.weight" not in shapes:
    raise CheckpointError(f"the ControlNet {choice.name!r}: {describe_file(file)}")
  config = SD1_CONTROLNET
  beside = file.parent / "config.json"
  if beside.is_file():
    # A folder of several files may belong to another network.
    found = read_json(beside)
    config = found if found.get("_class_name") == "ControlNetModel" else config
  keys = ".transformer_blocks.0.attn2.to_k.weight"
  width = next((shape[-1] for name, shape in shapes.items() if name.endswith(keys) and shape), 0)
  if config is SD1_CONTROLNET and width != config["cross_attention_dim"]:
    raise CheckpointError(f"{file} is a ControlNet of {_WIDTHS.get(width, 'another model')}, by the width {width} of "
                          "the text that it attends to; supported: those of Stable Diffusion 1.x, 768")
  try:
    network = ControlNetModel.from_config(config, dtype=dtype)
  except ValueError as error:
    raise config_error(beside, error) from error
  expected = abstract_params(network)
  table = COMPONENTS["controlnet"].table if original is None else original_table(network, expected)
  return ControlNet(choice, network, locate([file], expected, table))
