"""Alphas of LoRAs that peft has written: in the file's metadata, or in adapter_config.json beside the file."""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from pathlib import Path
from typing import Any

from sds_jax.priors.loading.files import CheckpointError, is_there, parse_json, read_header, read_json
from sds_jax.priors.networks.config_check import shown

_METADATA = "lora_adapter_metadata"
"""Key of the metadata under which diffusers puts peft's configuration, as JSON."""
_CONFIG = "adapter_config.json"
"""File of peft's configuration, beside adapter_model.safetensors."""
_LARGEST = 1e9


@dataclasses.dataclass(frozen=True)
class Alphas:
  """Alphas of layers that have no tensor `alpha`; without a configuration alpha is the rank.

  Attributes:
    path: the file with the configuration, for messages.
    values: {network: peft's configuration}; the key "" counts for every network.
  """
  path: Path
  values: Mapping[str, Mapping[str, Any]]

  def factor(self, network: str, module: str, rank: int) -> float:
    """Returns alpha / rank of a layer; alpha / sqrt(rank) where the configuration says `use_rslora`.

    Args:
      network: that the layer belongs to.
      module: name of the module that the layer changes, as written in the file.
      rank: of the layer.
    """
    config = self.values.get(network, self.values.get("", {}))
    alpha = next((value for pattern, value in config.get("alpha_pattern", {}).items() if _matches(pattern, module)),
                 config.get("lora_alpha"))
    if alpha is None:
      return 1.
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
  pattern = pattern.removeprefix("^")
  return module == pattern or module.endswith(f".{pattern}")


def read_alphas(path: Path) -> Alphas:
  """Returns the alphas in the metadata of a LoRA file, or in adapter_config.json beside a file of that kind.

  Raises:
    CheckpointError: the configuration is damaged, or asks for something that is not supported.
  """
  if path.suffix == ".safetensors":
    metadata = read_header(path)[0].get("__metadata__")
    text = metadata.get(_METADATA) if isinstance(metadata, dict) else None
    if text is not None:
      return Alphas(path, _by_network(path, text))
  config = path.parent / _CONFIG
  if path.name.startswith("adapter_model.") and is_there(config):
    return Alphas(config, {"": _checked(config, read_json(config))})
  return Alphas(path, {})


def _by_network(path: Path, text: Any) -> dict[str, Mapping[str, Any]]:
  """Returns {network: configuration} of diffusers' metadata, whose keys are `<network>.<key>`."""
  try:
    values = parse_json(text)
  except (ValueError, TypeError) as error:
    raise CheckpointError(f"{path}: the metadata {_METADATA} is not JSON: {error}") from error
  if not isinstance(values, dict):
    raise CheckpointError(f"{path}: the metadata {_METADATA}={shown(values)} should be a JSON object")
  configs: dict[str, dict[str, Any]] = {}
  for key, value in values.items():
    network, _, name = key.partition(".")
    configs.setdefault(network if name else "", {})[name or key] = value
  return {network: _checked(path, config) for network, config in configs.items()}


def _checked(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns peft's configuration; raises CheckpointError for values that are of no plain LoRA."""
  kind = config.get("peft_type", "LORA")
  if kind != "LORA":
    raise CheckpointError(f"{path}: peft_type={shown(kind)} is not supported; supported: 'LORA'")
  # A key that is null has its default.
  config = {key: value for key, value in config.items() if value is not None}
  for key, legal in (("use_dora", (False,)), ("lora_bias", (False,)), ("use_rslora", (False, True))):
    if config.get(key, False) not in legal:
      raise CheckpointError(f"{path}: {key}={shown(config[key])} is not supported; supported: "
                            f"{' and '.join(map(str, legal))}")
  pattern = config.setdefault("alpha_pattern", {})
  if not isinstance(pattern, dict):
    raise CheckpointError(f"{path}: alpha_pattern={shown(pattern)} should map names of modules to numbers")
  for name, alpha in [("lora_alpha", config.get("lora_alpha", 1)), *pattern.items()]:
    if type(alpha) not in (int, float) or not abs(alpha) <= _LARGEST:
      raise CheckpointError(f"{path}: the alpha {name[:200]}={shown(alpha)} should be a number")
    if set(name) & set("*+?[](){}|\\$"):
      raise CheckpointError(f"{path}: alpha_pattern has the pattern {name[:200]!r}; supported are names of modules")
  return config
