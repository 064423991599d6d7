"""LoRAs (arXiv:2106.09685) as files: reads them, and merges them into the weights of a network as these are loaded.

A layer changes the weight W of one module to W + scale * (alpha / rank) * up @ down. Names, shapes and alphas are read
from a file's header and its single numbers; the matrices are read when the module's weight is loaded. Every sum is
computed in float32, tensor by tensor, before the cast to the prior's dtype.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
from pathlib import Path
import re

import numpy as np

from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.finite import check_finite
from sds_jax.priors.loading.lora_alphas import Alphas, read_alphas
from sds_jax.priors.loading.lora_names import TEXT, TEXT_2, UNET, LoraKey, module_index, parse_key
from sds_jax.priors.loading.single_files import describe_tensors
from sds_jax.priors.loading.stored import Change
from sds_jax.priors.loading.tensor_files import FLOATS, Tensor, open_tensors

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin",
         "adapter_model.bin")
"""Names of the file in a folder that diffusers or peft has written."""
LABELS = {UNET: "the U-Net", TEXT: "the text encoder", TEXT_2: "the second text encoder"}
"""Networks, for messages."""
_LARGEST_COUNT = 30_000
"""Upper limit of the tensors of a LoRA; one of every layer of SDXL has about 8,000."""
_BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""Width of the text that a U-Net attends to -> the base model."""
_TEXT_WIDTHS = {768: "Stable Diffusion 1.x, or the first one of Stable Diffusion XL", 1024: "Stable Diffusion 2.x",
                1280: "Stable Diffusion XL, the second one"}
"""Width of a text encoder -> the base model."""
_PLAIN = ("supported are plain LoRAs of linear and convolutional layers, named as by kohya, diffusers or peft")


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer of a LoRA: the change of one module's weight.

  Attributes:
    path: the file.
    keys: {part: name of the tensor in the file}.
    tensors: {part: tensor}, of "down" [rank, I, ...], "up" [O, rank, ...] and perhaps "mid" [rank, rank, k, k].
    factor: alpha / rank.
  """
  path: Path
  keys: Mapping[str, str]
  tensors: Mapping[str, Tensor]
  factor: float

  @property
  def key(self) -> str:
    """Returns the name of the layer's first tensor, for messages."""
    return self.keys["down"]

  @property
  def inputs(self) -> int:
    """Returns the number of input channels."""
    return self.tensors["down"].shape[1]

  def check(self, shape: Sequence[int], module: str) -> None:
    """Raises CheckpointError unless the layer fits the weight of a module.

    Args:
      shape: of the weight: [O, I] or [O, I, k, k].
      module: its name, for the message.
    """
    shapes = {part: tensor.shape for part, tensor in self.tensors.items()}
    down, up, mid = shapes["down"], shapes["up"], shapes.get("mid")
    rank, kernel = down[0], tuple(shape[2:]) or (1, 1)
    inner = _kernel(down) if mid is None else _kernel(mid)
    fits = (down[1] == shape[1] and up[0] == shape[0] and up[1] == rank and _kernel(up) == (1, 1) and inner == kernel
            and (mid is None or mid[:2] == (rank, rank) and _kernel(down) == (1, 1)))
    if not fits:
      listed = ", ".join(f"{part} {list(value)}" for part, value in shapes.items())
      raise CheckpointError(f"{self.path}: {self.key} does not fit: the layer is {listed}, and the weight of {module} "
                            f"is {list(shape)}; take a LoRA that was trained on the prior's own base model")

  def delta(self, shape: Sequence[int]) -> np.ndarray:
    """Returns the change of the weight [O, I] or [O, I, k, k] at scale 1, float32. Reads the matrices."""
    down, up, mid = (self._read(part) if part in self.tensors else None for part in ("down", "up", "mid"))
    rank = down.shape[0]
    up = up.reshape(-1, rank)
    if mid is not None:
      # CP decomposition of a convolution: 1x1, k x k, 1x1.
      down = np.einsum("ijkl,jc->ickl", mid, down.reshape(rank, -1), optimize=True)
    return np.float32(self.factor) * (up @ down.reshape(rank, -1)).reshape(tuple(shape))

  def _read(self, part: str) -> np.ndarray:
    return check_finite(self.path, self.keys[part], self.tensors[part].read(), np.dtype(np.float32))


def _kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns height and width of a kernel; (1, 1) for the weight of a linear layer."""
  return shape[2:] or (1, 1)


@dataclasses.dataclass(frozen=True)
class Lora:
  """A LoRA file.

  Attributes:
    path: the file.
    scale: factor of all changes.
    layers: {network: {normalised name of a module: layer}}.
  """
  path: Path
  scale: float
  layers: Mapping[str, Mapping[str, Layer]]


def read_lora(path: Path, scale: float) -> Lora:
  """Returns the LoRA in a file, or in a folder of diffusers or peft; reads no matrix.

  Raises:
    CheckpointError: the file is missing or damaged, or is no plain LoRA; the message names the file and the tensor.
  """
  path = find_file(path, FILES, "a LoRA")
  tensors = open_tensors(path)
  if len(tensors) > _LARGEST_COUNT:
    raise CheckpointError(f"{path} has {len(tensors)} tensors, more than the {_LARGEST_COUNT} that a LoRA may have")
  parts: dict[tuple[str, str], dict[str, str]] = {}
  names: dict[tuple[str, str], str] = {}
  for key, parsed in _parse(path, tensors).items():
    layer = parts.setdefault((parsed.network, parsed.module), {})
    if parsed.part in layer:
      raise CheckpointError(f"{path}: {layer[parsed.part]} and {key} are of the same layer; a file may hold one LoRA")
    layer[parsed.part] = key
    names[parsed.network, parsed.module] = parsed.module_name
  alphas = read_alphas(path)
  layers: dict[str, dict[str, Layer]] = {}
  for (network, module), keys in parts.items():
    layers.setdefault(network, {})[module] = _layer(path, keys, tensors, alphas, network, names[network, module])
  if not layers:
    raise CheckpointError(f"{path} has no layer of a LoRA")
  return Lora(path, scale, layers)


def find_file(path: Path, names: Sequence[str], kind: str) -> Path:
  """Returns a file, or the file of a folder that has one of the given names, or the folder's only weight file.

  Raises:
    CheckpointError: nothing of that kind is there.
  """
  if not os.path.lexists(path):
    raise CheckpointError(f"{path} does not exist; it should be a file of {kind}, or a folder with one")
  if not os.path.isdir(path):
    return path
  inside = [path / name for name in names if os.path.lexists(path / name)]
  try:
    inside = inside or sorted(file for file in path.iterdir() if file.suffix == ".safetensors")
  except OSError as error:
    raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
  if len(inside) > 1 and inside[0].name not in names or not inside:
    raise CheckpointError(f"the folder {path} has {'several files' if inside else 'no file'} that may be {kind}: name "
                          f"the file, such as {path / names[0]}")
  return inside[0]


def _parse(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, LoraKey]:
  """Returns {name of a tensor: what it says}; raises CheckpointError for a file that is no plain LoRA."""
  parsed = {key: parse_key(key) for key in tensors}
  for key, value in parsed.items():
    if value and isinstance(value, str):
      raise CheckpointError(f"{path}: {key[:200]} is of {value}, which is not supported; {_PLAIN}")
  unknown = [key for key, value in parsed.items() if isinstance(value, str)]
  if unknown and len(unknown) == len(parsed):
    kind, _ = describe_tensors({key: tensor.shape for key, tensor in tensors.items()})
    raise CheckpointError(f"{path} is {kind} and no LoRA ({unknown[0][:200]}); {_PLAIN}")
  if unknown:
    raise CheckpointError(f"{path}: {unknown[0][:200]} is no part of a plain LoRA{_more(unknown)}; {_PLAIN}")
  return parsed


def _layer(path: Path, keys: Mapping[str, str], tensors: Mapping[str, Tensor], alphas: Alphas, network: str,
           module: str) -> Layer:
  """Returns a layer after checking that its tensors fit each other."""
  first = next(iter(keys.values()))
  lacking = {"down", "up"} - set(keys)
  if lacking:
    raise CheckpointError(f"{path}: beside {first} there is no {' and no '.join(sorted(lacking))} matrix; the file is "
                          "incomplete, or of a kind of LoRA that is not supported")
  parts = {part: tensors[key] for part, key in keys.items() if part != "alpha"}
  for part, tensor in parts.items():
    if tensor.dtype not in FLOATS or len(tensor.shape) not in (2, 4) or 0 in tensor.shape:
      raise CheckpointError(f"{path}: {keys[part]} is {tensor.dtype} {list(tensor.shape)}, expected a matrix or the "
                            f"kernel of a convolution in one of {', '.join(FLOATS)}")
  rank = parts["down"].shape[0]
  if "alpha" in keys:
    factor = _alpha(path, keys["alpha"], tensors[keys["alpha"]]) / rank
  else:
    factor = alphas.factor(network, module, rank)
  return Layer(path, {part: keys[part] for part in parts}, parts, factor)


def _alpha(path: Path, key: str, tensor: Tensor) -> float:
  """Returns the number in a tensor of any shape with one number."""
  if math.prod(tensor.shape) != 1:
    raise CheckpointError(f"{path}: {key} is {list(tensor.shape)}, expected one number")
  alpha = float(np.asarray(tensor.read()).astype(np.float64).reshape(()))
  if not math.isfinite(alpha):
    raise CheckpointError(f"{path}: {key} is {alpha}, expected a finite number; take an undamaged copy of the file")
  return alpha


def merge(loras: Sequence[Lora], network: str, kernels: Mapping[str, tuple[int, ...]]) -> dict[str, Change]:
  """Returns {name of a weight: its change} of a network, by all LoRAs in order.

  Args:
    loras: the files.
    network: UNET, TEXT or TEXT_2.
    kernels: {name in checkpoints: shape in torch's layout} of the weights of linear and convolutional layers.

  Raises:
    CheckpointError: a layer is of no module of the network, or does not fit its weight; the message names the file
      and the tensor, and for a LoRA of another base model both models.
  """
  index = module_index((name.removesuffix(".weight") for name in kernels), network)
  merged: dict[str, list[tuple[Layer, float]]] = {}
  for lora in loras:
    layers = lora.layers.get(network, {})
    _check_base(lora, network, layers, kernels)
    unknown = [layer.key for module, layer in layers.items() if module not in index]
    if unknown:
      raise CheckpointError(f"{lora.path}: {unknown[0][:200]} is of no linear or convolutional layer of "
                            f"{LABELS[network]}{_more(unknown)}; take a LoRA that was trained on the prior's own base "
                            "model")
    by_weight: dict[str, Layer] = {}
    for module, layer in layers.items():
      name = f"{index[module]}.weight"
      if name in by_weight:
        raise CheckpointError(f"{lora.path}: {by_weight[name].key} and {layer.key} are two layers of the same module, "
                              f"{index[module]}")
      layer.check(kernels[name], index[module])
      by_weight[name] = layer
    for name, layer in by_weight.items() if lora.scale else ():
      merged.setdefault(name, []).append((layer, lora.scale))
  return {name: _Sum(tuple(layers)) for name, layers in merged.items()}


@dataclasses.dataclass(frozen=True)
class _Sum:
  """A change: adds the layers, each times its scale, to a weight."""
  layers: tuple[tuple[Layer, float], ...]

  def __call__(self, weight: np.ndarray) -> np.ndarray:
    for layer, scale in self.layers:
      weight = weight + np.float32(scale) * layer.delta(weight.shape)
    return weight


def _check_base(lora: Lora, network: str, layers: Mapping[str, Layer], kernels: Mapping[str, tuple[int, ...]]) -> None:
  """Raises CheckpointError for a LoRA of another base model, by the width of the text."""
  pattern, own, bases, words = (
    (r"attn2_to_[kv]$", r"attn2\.to_k\.weight$", _BASES, "U-Net attends to text of width") if network == UNET else
    (r"self_attn_(to_)?[qkv](_proj)?$", r"self_attn\.q_proj\.weight$", _TEXT_WIDTHS, "text encoder has the width"))
  layer = next((layer for module, layer in layers.items() if re.search(pattern, module)), None)
  width = next((shape[1] for name, shape in kernels.items() if re.search(own, name)), None)
  if layer is not None and width is not None and layer.inputs != width:
    base, prior = (f" ({bases[value]})" if value in bases else "" for value in (layer.inputs, width))
    raise CheckpointError(f"{lora.path} is a LoRA of another base model: its {words} {layer.inputs}{base}, by "
                          f"{layer.key}, and the prior's {width}{prior}")


def _more(listed: Sequence[str]) -> str:
  return f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
