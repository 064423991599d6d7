"""Translates the names of tensors in LoRA files into networks, modules and parts of a layer.

Writers name one layer of the U-Net in several ways:

  kohya             lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
  kohya, SDXL       lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight
  diffusers < 0.21  unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight
  diffusers, peft   unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight

kohya's names cannot be taken apart at their underscores, since modules have underscores in their own names. So a name
is normalised, every dot becomes an underscore, and the result is looked up among the normalised names of the network's
modules.
"""
from __future__ import annotations

from collections.abc import Iterable
import re
from typing import NamedTuple

from sds_jax.priors.loading.ldm_names import unet_rule

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
"""Networks that a LoRA changes, by the names of their folders."""


class LoraKey(NamedTuple):
  """What the name of a tensor in a LoRA file says.

  Attributes:
    network: UNET, TEXT or TEXT_2.
    module: normalised name of the module that the layer changes.
    part: "down", "up", "mid" or "alpha".
    module_name: name of the module without the network and the part, as written.
  """
  network: str
  module: str
  part: str
  module_name: str


_PARTS: tuple[tuple[re.Pattern, str], ...] = tuple((re.compile(pattern), part) for pattern, part in (
  (r"\.lora_down\.weight", "down"), (r"\.lora_up\.weight", "up"), (r"\.lora_mid\.weight", "mid"),
  (r"[._]lora\.down\.weight", "down"), (r"[._]lora\.up\.weight", "up"),
  (r"\.lora_linear_layer\.down\.weight", "down"), (r"\.lora_linear_layer\.up\.weight", "up"),
  # peft writes the name of the adapter between, as in `lora_A.default.weight`.
  (r"\.lora_A(\.[^.]+)?\.weight", "down"), (r"\.lora_B(\.[^.]+)?\.weight", "up"),
  (r"\.alpha", "alpha")))
"""(pattern of the end of a name, the part of a layer)."""

_NETWORKS: tuple[tuple[str, str], ...] = (
  ("lora_unet_", UNET), ("lora_te_", TEXT), ("lora_te1_", TEXT), ("lora_te2_", TEXT_2), ("unet.", UNET),
  ("text_encoder.", TEXT), ("text_encoder_2.", TEXT_2), ("model.diffusion_model.", UNET), ("diffusion_model.", UNET))
"""(beginning of a name, the network)."""
_WRAPPERS = ("base_model.model.", "base_model.")
"""Beginnings of names that peft's wrappers add."""
_TEXT_MODULES = ("text_model.", "text_projection.", "encoder.layers.")
"""Beginnings of the names of a text encoder's modules, for files of one network whose names do not say which."""

_OTHERS: tuple[tuple[re.Pattern, str], ...] = tuple((re.compile(pattern), kind) for pattern, kind in (
  (r"dora_scale|lora_magnitude_vector", "DoRA"), (r"\.hada_", "LoHa"), (r"\.lokr_", "LoKr"),
  (r"\.(oft|boft)_|\.oft_blocks", "OFT"), (r"\.on_input$", "(IA)^3"), (r"\.[ab][12]\.weight$", "GLoRA"),
  (r"\.diff(_b)?$|\.set_weight$|\.(w|b)_norm$", "a difference of whole weights"),
  (r"\.lora_embedding_[AB]$", "a LoRA of an embedding table"), (r"\.lora_[AB](\.[^.]+)?\.bias$", "a LoRA with biases"),
  (r"^bundle_emb\.", "an embedding bundled with a LoRA"),
  (r"double_blocks|single_blocks|single_transformer_blocks", "a LoRA of FLUX"),
  (r"joint_blocks|^(lora_)?transformer[._]", "a LoRA of Stable Diffusion 3 or of another transformer"),
  (r"^lora_(prior|te3)", "a LoRA of another kind of model")))
"""(pattern of a name, the kind of adapter or model that is not supported)."""


def parse_key(key: str) -> LoraKey | str:
  """Returns what the name of a tensor says, or for a name of no plain LoRA the kind of adapter, "" where unknown.

  >>> parse_key("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")[:3]
  ('unet', 'mid_block_attentions_0_proj_in', 'down')
  >>> parse_key("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector")
  'DoRA'
  """
  for pattern, kind in _OTHERS:
    if pattern.search(key):
      return kind
  for pattern, part in _PARTS:
    match = re.search(f"(?:{pattern.pattern})$", key)
    if match:
      network, name = _network(key[:match.start()])
      # Old versions of diffusers kept the layers in processors of the attention.
      name = name.replace(".processor.", ".")
      return LoraKey(network, normalised(name), part, name)
  return ""


def _network(name: str) -> tuple[str, str]:
  """Returns (network, name of the module) of a name without its part."""
  name = _unwrapped(name)
  for prefix, network in _NETWORKS:
    if name.startswith(prefix):
      return network, _unwrapped(name.removeprefix(prefix))
  return TEXT if name.startswith(_TEXT_MODULES) else UNET, name


def _unwrapped(name: str) -> str:
  for wrapper in _WRAPPERS:
    name = name.removeprefix(wrapper)
  return name


def normalised(name: str) -> str:
  """Returns a module's name with underscores in place of dots."""
  return name.replace(".", "_")


def module_index(modules: Iterable[str], network: str) -> dict[str, str]:
  """Returns {normalised name: name} of a network's modules, by all the names that LoRA files have for them.

  Args:
    modules: names in checkpoints, as "down_blocks.0.resnets.0.conv1".
    network: UNET, TEXT or TEXT_2.

  Raises:
    ValueError: two modules have the same normalised name.
  """
  modules = list(modules)
  index: dict[str, str] = {}
  for alias, module in [(module, module) for module in modules] + list(_aliases(modules, network)):
    if index.setdefault(normalised(alias), module) != module:
      raise ValueError(f"the modules {index[normalised(alias)]} and {module} have the same normalised name")
  return index


def _aliases(modules: list[str], network: str) -> Iterable[tuple[str, str]]:
  """Yields (further name, name of the module)."""
  if network == UNET:
    ldm = ldm_names(modules)
    yield from ((name, module) for module, name in ldm.items())
    # Old versions of diffusers call the list of two modules by the name of its first one.
    yield from ((module.removesuffix(".0"), module) for module in modules if module.endswith(".to_out.0"))
    return
  for module in modules:
    short = module.removeprefix("text_model.")
    old = re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", module)
    yield from ((name, module) for name in (short, old, old.removeprefix("text_model.")) if name != module)


def ldm_names(modules: Iterable[str]) -> dict[str, str]:
  """Returns {name of a U-Net's module in diffusers: name in latent diffusion's code} of the modules that have one.

  >>> ldm_names(["down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"])
  {'down_blocks.0.resnets.0.conv1': 'input_blocks.1.0.in_layers.2', 'down_blocks.0.downsamplers.0.conv': \
'input_blocks.2.0.op'}
  """
  modules = list(modules)
  down, up = ([int(match[1]) for match in map(re.compile(rf"{side}_blocks\.\d+\.resnets\.(\d+)\.").match, modules)
               if match] for side in ("down", "up"))
  attending = {int(match[1]) for match in map(re.compile(r"up_blocks\.(\d+)\.attentions\.").match, modules) if match}
  # An up block has one residual block more than a down block.
  rule = unet_rule(1 + max(down) if down else max(up, default=0), frozenset(attending))
  names = {}
  for module in modules:
    # Latent diffusion's code changes the resolution by convolutions only.
    if re.search(r"samplers\.\d+\.(?!conv$)", module):
      continue
    try:
      names[module] = rule(f"{module}.weight").key.removesuffix(".weight")
    except (KeyError, TypeError):  # a module that this code does not have
      continue
  return names
