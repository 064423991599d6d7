"""Reads and writes component folders of diffusers checkpoints (config.json and weights) as Flax trees.

Reading is a bijection between the names in the file and the network's parameters (from `jax.eval_shape` of its
initialization), or raises one error that lists the differences on both sides. Names and shapes are compared from the
files' headers, before any weight is read. torch is not needed.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import contextvars
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sds_jax.priors.loading import names
from sds_jax.priors.loading.composed import Composed, StoredWeights, as_folder
from sds_jax.priors.loading.finite import check_finite
from sds_jax.priors.loading.files import CheckpointError, read_json, write_atomically, write_json
from sds_jax.priors.loading.stored import Stored as Stored
from sds_jax.priors.loading.stored import changed
from sds_jax.priors.loading.tensor_files import FLOATS, open_tensors
from sds_jax.priors.loading.weight_files import weight_files as weight_files
from sds_jax.priors.networks.abstract import abstract_params as abstract_params
from sds_jax.priors.networks.autoencoders import Autoencoder
from sds_jax.priors.networks.clip import CLIPTextModel, CLIPTextModelWithProjection
from sds_jax.priors.networks.clip_vision import CLIPVisionModelWithProjection
from sds_jax.priors.networks.controlnet import ControlNetModel
from sds_jax.priors.networks.pose_layers import CCProjection, ElevationHead
from sds_jax.priors.networks.t5 import T5EncoderModel
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.types import Params

_LISTED = 8
"""How many names of each kind an error lists."""
LARGEST_NETWORK = 2**36
"""Upper limit of the parameters of a network: 69 billion, several times the largest published one."""

@dataclasses.dataclass(frozen=True)
class Component:
  """A kind of network as checkpoints store it, one folder a network.

  Attributes:
    network: class with `from_config(config, **fields)`, which returns a linen module with `example_inputs()`.
    stem: file name of its weights, without variant and suffix.
    table: how its parameters are named in checkpoints.
  """
  network: Any
  stem: str
  table: names.NameTable


COMPONENTS = {
  "unet": Component(UNet2DConditionModel, "diffusion_pytorch_model", names.UNET),
  "clip_text": Component(CLIPTextModel, "model", names.CLIP_TEXT),
  "clip_text_2": Component(CLIPTextModelWithProjection, "model", names.CLIP_TEXT),
  "image_encoder": Component(CLIPVisionModelWithProjection, "model", names.CLIP_VISION),
  "cc_projection": Component(CCProjection, "diffusion_pytorch_model", names.LINEAR),
  "elevation_head": Component(ElevationHead, "diffusion_pytorch_model", names.LINEAR),
  "t5": Component(T5EncoderModel, "model", names.T5),
  "controlnet": Component(ControlNetModel, "diffusion_pytorch_model", names.UNET),
  "vae": Component(Autoencoder, "diffusion_pytorch_model", names.VAE),
}
"""The networks of this package by name; a family with another network passes its `Component` instead of a name."""


def component(kind: str | Component) -> Component:
  """Returns the component itself, or the entry of COMPONENTS with that name."""
  return COMPONENTS[kind] if isinstance(kind, str) else kind


def read_component(folder: str | os.PathLike, kind: str | Component, dtype: Any = jnp.float32,
                   **options: Any) -> tuple[nn.Module, Params]:
  """Returns the network and the parameters in a component folder (`unet/`, `text_encoder/`, `vae/`).

  Args:
    folder: holds config.json and `<stem>.safetensors`; or shards with `<stem>.safetensors.index.json`; or either as
      one of VARIANTS (`<stem>.fp16.safetensors`); or the same as torch's archives (`pickle_name`). The first existing
      set in this order is read.
    kind: a key of COMPONENTS, or a component.
    dtype: of the parameters and of the network's activations.
    **options: further fields of the network that no config.json has (`remat`, say).

  Returns:
    (linen module, parameter tree).

  Raises:
    CheckpointError: a file is missing or damaged, or names or shapes differ from the network's.
    ValueError: config.json asks for something that isn't supported.
  """
  model, places = open_component(folder, kind, dtype, **options)
  return model, load_on_device(places, dtype)


def open_component(folder: str | os.PathLike, kind: str | Component, dtype: Any = jnp.float32, variant: str = "",
                   **options: Any) -> tuple[nn.Module, dict[names.Path, Stored]]:
  """Returns (linen module, {Flax path: where the parameter is stored}) of a component folder, from headers alone.

  Other arguments and errors are those of `read_component`.

  Args:
    variant: of the weight files; a folder without this variant is read as if "" had been given.
  """
  part, folder = component(kind), as_folder(folder)
  if not folder.is_dir():
    raise CheckpointError(f"{folder} does not exist or is no folder")
  model, expected = _network(folder / "config.json", part, dict(options, dtype=dtype))
  if _CONFIGS_ONLY.get():
    return model, {}
  if isinstance(folder, Composed) and folder.stored:
    return model, _locate_in(folder.stored, expected, part.table)
  return model, locate(weight_files(folder, part.stem, variant), expected, part.table)


_CONFIGS_ONLY = contextvars.ContextVar("configs_only", default=False)


@contextlib.contextmanager
def configs_only() -> Iterator[None]:
  """Lets `open_component` accept folders without weights: configurations are checked, and no place is returned.

  A prior can so be checked before gigabytes of weights are downloaded.
  """
  token = _CONFIGS_ONLY.set(True)
  try:
    yield
  finally:
    _CONFIGS_ONLY.reset(token)


def reads_configs_only() -> bool:
  """Returns whether `configs_only` is in effect."""
  return _CONFIGS_ONLY.get()


def check_configs(folder: Path, components: Mapping[str, Component]) -> None:
  """Checks the values in the config.json of each component that exists, before any network is traced.

  Args:
    folder: the prior's folder.
    components: {folder below it: component}.

  Raises:
    CheckpointError: a value is not supported; the message names the file, the key and the value.
  """
  for name, part in components.items():
    if (folder / name / "config.json").is_file():
      _module(folder / name / "config.json", part, {})


def _module(path: Path, part: Component, fields: Mapping[str, Any]) -> nn.Module:
  """Returns the network that a config.json describes."""
  config = read_json(path)
  try:
    return part.network.from_config(config, **fields)
  except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
    raise config_error(path, error) from error


def _network(path: Path, part: Component,
             fields: Mapping[str, Any]) -> tuple[nn.Module, dict[names.Path, jax.ShapeDtypeStruct]]:
  """Returns the network that a config.json describes, and the shapes of its parameters."""
  model = _module(path, part, fields)
  if not hasattr(model, "example_inputs"):
    abstract_params(model)  # raises a TypeError for the author of the network
  try:
    expected = abstract_params(model)
  except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
    raise config_error(path, error) from error
  # A hostile config can describe a network that no memory holds; nothing is allocated yet.
  count = sum(math.prod(leaf.shape) for leaf in expected.values())
  if count > LARGEST_NETWORK:
    raise CheckpointError(f"{path}: its network has {count} parameters, more than the {LARGEST_NETWORK} that are "
                          "supported")
  return model, expected


def config_error(path: Path, error: Exception) -> CheckpointError:
  """Returns the error of a JSON file whose content led to `error`, as one line that names the file."""
  kind = "" if isinstance(error, ValueError) else f"a value of a wrong type, or none ({type(error).__name__}): "
  text = " ".join(str(error).split())
  return CheckpointError(f"{path}: {kind}{text if len(text) <= 600 else text[:596] + ' ...'}")


def locate(files: list[Path], expected: Mapping[names.Path, jax.ShapeDtypeStruct],
            table: names.NameTable) -> dict[names.Path, Stored]:
  """Returns {Flax path: where the parameter is stored} of a network in the given files.

  Args:
    files: of the component; safetensors, or torch's archives.
    expected: of the network's parameters, from `abstract_params`.
    table: of the component's names.

  Raises:
    CheckpointError: as `read_component`.
  """
  tensors = ((key, Stored(file, key, tensor.shape, tensor.read, tensor.dtype))
             for file in files for key, tensor in open_tensors(file).items())
  return _match(files[0].parent, _by_name(tensors, table), expected, table)


def _locate_in(weights: StoredWeights, expected: Mapping[names.Path, jax.ShapeDtypeStruct],
               table: names.NameTable) -> dict[names.Path, Stored]:
  """Returns what `locate` returns, of a network in a file with other names."""
  found = weights.find(list(names.flax_paths(expected, table)))
  stored_at = _by_name(found.items(), table)
  return _match(weights.file, stored_at, expected, table, weights.label)


def _match(where: Path, stored_at: Mapping[str, Stored], expected: Mapping[names.Path, jax.ShapeDtypeStruct],
           table: names.NameTable, label: Callable[[str], str] = str) -> dict[names.Path, Stored]:
  """Returns {Flax path: where the parameter is stored}, after comparing names and shapes.

  Args:
    where: the file or folder, for messages.
    stored_at: {name: where it is stored} of all tensors.
    expected, table: as for `locate`.
    label: (name) -> the name for messages.
  """
  paths = names.flax_paths(expected, table)
  wanted = {name: names.checkpoint_shape(path, expected[path].shape) for name, path in paths.items()}
  shapes = {label(name): names.as_linear(stored.shape, wanted.get(name, ())) for name, stored in stored_at.items()}
  _compare(where, shapes, {label(name): shape for name, shape in wanted.items()})
  return {path: dataclasses.replace(stored_at[name], shape=wanted[name]) for name, path in paths.items()}


def load_on_device(places: Mapping[names.Path, Stored], dtype: Any,
                   put: Callable[[np.ndarray], jax.Array] | None = None) -> Params:
  """Loads the parameters; each is on the device (or where `put` puts it) before the next is read.

  So the host never holds all of them. `places` and `dtype` are those of `load`.
  """
  return load(places, dtype, lambda array: jax.block_until_ready((put or jax.device_put)(array)))


def load(places: Mapping[names.Path, Stored], dtype: Any,
         put: Callable[[np.ndarray], Any] = lambda array: array) -> Params:
  """Loads the parameters at `places` (some or all entries of `locate`'s result) as a tree, cast to `dtype`.

  Parameters are read one by one. Each goes through `put` as a host array; no other copy is kept.

  Raises:
    CheckpointError: a tensor has NaN or infinity, or values outside the range of `dtype`; the message names it.
  """
  flat = {}
  # File by file, as a disk reads best.
  for path, stored in sorted(places.items(), key=lambda item: str(item[1].file)):
    array = check_finite(stored.file, stored.key, changed(stored, stored.read()), jnp.dtype(dtype))
    flat[path] = put(names.to_flax(path, array))
  return traverse_util.unflatten_dict(flat)


def _by_name(tensors: Iterable[tuple[str, Stored]], table: names.NameTable) -> dict[str, Stored]:
  """Returns {name: where the tensor is stored} of all tensors but the ignored ones.

  Args:
    tensors: (name, place) of each tensor.
    table: of the component's names.
  """
  stored_at: dict[str, Stored] = {}
  for key, stored in tensors:
    name = names.full_name(key, table)
    if names.is_ignored(name, table):
      continue
    if name in stored_at:
      raise CheckpointError(f"{stored.key} stands in {stored_at[name].file.name} and again in {stored.file.name} in "
                            f"{stored.file.parent}")
    if stored.dtype not in FLOATS:
      raise CheckpointError(f"{stored.file}: {stored.key} has dtype {stored.dtype}; supported: {', '.join(FLOATS)}")
    stored_at[name] = stored
  # A copy counts only where the original is missing.
  copies = {table.tied[name]: stored_at.pop(name) for name in set(stored_at) & set(table.tied)}
  return copies | stored_at


def _compare(folder: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
  """Raises CheckpointError with all differences between two mappings {name: shape}."""
  problems = {
    "missing in the file": sorted(set(expected) - set(shapes)),
    "unexpected in the file": sorted(set(shapes) - set(expected)),
    "wrong shape": [_shape_problem(name, shapes[name], expected[name])
                    for name in sorted(set(shapes) & set(expected)) if shapes[name] != expected[name]],
  }
  lines = [f"  {what} ({len(items)}): {', '.join(items[:_LISTED])}{', ...' if len(items) > _LISTED else ''}"
           for what, items in problems.items() if items]
  if lines:
    raise CheckpointError("\n".join([f"{folder}: the weights don't fit the network of config.json", *lines]))


def _shape_problem(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
  # A frequent mistake of converters, which is easy to see from the shapes.
  hint = ", transposed?" if shape == expected[::-1] or sorted(shape) == sorted(expected) else ""
  return f"{name} is {list(shape)} in the file, {list(expected)} in the network{hint}"


def write_component(folder: str | os.PathLike, kind: str | Component, config: Mapping[str, Any], params: Params,
                    dtype: Any = jnp.float16) -> None:
  """Writes a component folder that `read_component`, diffusers and transformers open.

  Each file appears whole or not at all (temporary name, then rename), the weights before config.json.

  Args:
    folder: made when absent; files in it are replaced.
    kind: a key of COMPONENTS, or a component.
    config: the content of config.json.
    params: parameter tree of the network that `config` describes.
    dtype: of the weights in the file, float16 or float32.

  Raises:
    ValueError: `config` is not supported, `params` are not those of its network, or a value is not finite in `dtype`.
  """
  part, folder = component(kind), Path(folder)
  expected = abstract_params(part.network.from_config(config))
  flat = traverse_util.flatten_dict(params)
  _compare(folder, {"/".join(path): jnp.shape(value) for path, value in flat.items()},
           {"/".join(path): value.shape for path, value in expected.items()})
  tensors = {}
  for path, value in flat.items():
    name = names.checkpoint_name(path, part.table)
    tensors[name] = _as_stored(name, names.to_checkpoint(path, np.asarray(value)), dtype)
  folder.mkdir(parents=True, exist_ok=True)
  write_atomically(folder / f"{part.stem}.safetensors",
                   lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
  # The config last: a folder with a config is whole.
  write_json(folder / "config.json", dict(config))


def _as_stored(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
  with np.errstate(over="ignore"):
    # Contiguous, because `to_checkpoint` returns transposed views.
    stored = np.ascontiguousarray(array.astype(jnp.dtype(dtype)))
  if not np.all(np.isfinite(stored)):
    raise ValueError(f"{name} has values that are not finite in {jnp.dtype(dtype).name}")
  return stored
