"""Text encoders with a cache of embeddings on disk.

A text encoder is opened from its files' headers alone. Its parameters are read when a batch of prompts is not in the
cache, and are dropped after encoding. The name of a cached file is a digest of everything that the embeddings depend
on: the encoder's configuration and weights, the dtype, and the tokens.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import tempfile
from typing import Any
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from sds_jax.priors.loading.additions import NONE, Additions
from sds_jax.priors.loading.checkpoint import COMPONENTS, load_on_device, open_component
from sds_jax.priors.loading.file_digest import file_digest
from sds_jax.priors.loading.files import CheckpointError, read_json, write_atomically
from sds_jax.priors.loading.t5_stream import encode_in_layers, open_parts
from sds_jax.priors.loading.t5_tokenizer import load_t5_tokenizer
from sds_jax.priors.loading.tokenizers import load_tokenizer
from sds_jax.priors.loading.weight_files import weight_files
from sds_jax.priors.networks.clip import CLIPTextModelWithProjection
from sds_jax.types import Array

_VERSION = "2"
"""Part of every cached file's name; raise the number when the same files would give other embeddings."""

_TOKENIZER_FILES = frozenset(f"tokenizer/{name}.json" for name in (
  "tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens"))
CLIP_TOKENIZER: tuple[tuple[str, ...], ...] = (("vocab.json", "merges.txt"), ("tokenizer.json",))
"""Sets of files in `tokenizer/` one of which `open_clip_text` needs."""
CLIP_TOKENIZER_FILES = _TOKENIZER_FILES | {"tokenizer/vocab.json", "tokenizer/merges.txt"}
"""All files in `tokenizer/` that `open_clip_text` may read."""
T5_TOKENIZER: tuple[tuple[str, ...], ...] = (("tokenizer.json",), ("spiece.model",))
"""Sets of files in `tokenizer/` one of which `open_t5` needs."""
T5_TOKENIZER_FILES = _TOKENIZER_FILES | {"tokenizer/spiece.model"}
"""All files in `tokenizer/` that `open_t5` may read."""


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """Callable: n prompts -> {name: embeddings [n, ...] float32}.

  Attributes:
    folder: the component's folder, with config.json and weights.
    kind: name of the encoder's kind, part of the cache's digest.
    model: the network.
    tokenizer: (prompts) -> ids [n, T], or (ids, mask [n, T]).
    shapes: {name: shape of one prompt's embeddings}.
    encode: (ids, mask or None) -> {name: [n, ...]}; reads the parameters and drops them.
    stem: file name of the weights, without variant and suffix.
    variant: of the weight files, see `checkpoint.weight_files`.
    additions: LoRAs and new tokens, which are part of the cache's digest.
    network: name of the encoder in LoRA files.
  """
  folder: Path
  kind: str
  model: nn.Module
  tokenizer: Callable[[Sequence[str]], Any]
  shapes: Mapping[str, tuple[int, ...]]
  encode: Callable[[np.ndarray, np.ndarray | None], dict[str, Array]]
  stem: str = "model"
  variant: str = ""
  additions: Additions = NONE
  network: str = "text_encoder"

  def __call__(self, prompts: Sequence[str]) -> dict[str, Array]:
    """Reads the embeddings from the cache, or computes and stores them. Reads files, so not for use under jit.

    Raises:
      CheckpointError: the weights have disappeared since the encoder was opened.
    """
    tokens = self.tokenizer(prompts)
    ids, mask = tokens if isinstance(tokens, tuple) else (tokens, None)
    path = cache_folder() / f"{self._key(ids, mask)}.safetensors"
    stored = _read(path, {name: (len(ids), *shape) for name, shape in self.shapes.items()})
    if stored is not None:
      return {name: jnp.asarray(array) for name, array in stored.items()}
    # float32 in the cache and out of it, so that a stored and a fresh embedding are equal.
    embedded = {name: array.astype(jnp.float32) for name, array in self.encode(ids, mask).items()}
    _write(path, {name: np.asarray(array) for name, array in embedded.items()})
    return embedded

  def _key(self, ids: np.ndarray, mask: np.ndarray | None) -> str:
    """Returns a digest of everything that the embeddings depend on.

    That includes how products are computed: JAX's platform and the precision of its products.
    """
    fields = {field.name: str(getattr(self.model, field.name)) for field in dataclasses.fields(self.model)
              if field.name not in ("parent", "name")}
    # The content of the weights and not their path: a new download may replace them.
    files = [[path.name, file_digest(path, cache_folder())]
             for path in weight_files(self.folder, self.stem, self.variant)]
    facts = [_VERSION, self.kind, type(self.model).__name__, fields, read_json(self.folder / "config.json"), files,
             {name: list(shape) for name, shape in self.shapes.items()}, ids.tolist(),
             None if mask is None else mask.tolist(), jax.default_backend(),
             str(jax.config.jax_default_matmul_precision)]
    facts += self.additions.facts(self.network, cache_folder())
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class TextEncoderPair:
  """Callable: n prompts -> {"text": the tokens of both encoders side by side [n, T, D + D'], "pooled": [n, P]}.

  Each encoder has its own entries in the cache, which its own files are part of.

  Attributes:
    first: gives `text`.
    second: gives `text` and `pooled`.
    zeros_for_empty: whether the embeddings of the empty prompt are zeros.
  """
  first: TextEncoder
  second: TextEncoder
  zeros_for_empty: bool = False

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape of one prompt's embeddings}."""
    (tokens, first), (_, second) = (encoder.shapes["text"] for encoder in (self.first, self.second))
    return {"text": (tokens, first + second), "pooled": self.second.shapes["pooled"]}

  def __call__(self, prompts: Sequence[str]) -> dict[str, Array]:
    """Encodes one after the other, so that only one encoder is in memory; otherwise as `TextEncoder`."""
    first, second = self.first(prompts)["text"], self.second(prompts)
    embedded = {"text": jnp.concatenate([first, second["text"]], axis=-1), "pooled": second["pooled"]}
    if not self.zeros_for_empty:
      return embedded
    # A prompt of spaces has the tokens of the empty one.
    given = jnp.asarray([bool(prompt.strip()) for prompt in prompts])
    return {name: jnp.where(given.reshape(-1, *[1] * (array.ndim - 1)), array, 0.0)
            for name, array in embedded.items()}


def open_clip_text(folder: Path, dtype: Any, variant: str = "", suffix: str = "",
                   additions: Additions = NONE, **fields: Any) -> TextEncoder:
  """Opens the CLIP text encoder in `text_encoder/` and `tokenizer/` of a prior's folder; reads no weights.

  Encoding puts the whole encoder onto the device.

  Args:
    folder: the prior's folder.
    dtype: of parameters and activations.
    variant: of the weight files, see `checkpoint.weight_files`.
    suffix: of the names of both folders: "", or "_2" for the second text encoder of SDXL, which has a projection.
    additions: LoRAs and new tokens.
    **fields: further fields of the network, as `clip_skip`.

  Returns:
    An encoder that gives {"text": [n, T, D]}, and with the suffix "_2" also {"pooled": [n, P]}.

  Raises:
    CheckpointError: a file is missing or damaged, the weights' names or shapes are not the network's, or encoder and
      tokenizer do not fit each other.
    ValueError: config.json asks for something that is not supported.
  """
  encoder, kind = folder / f"text_encoder{suffix}", f"clip_text{suffix}"
  model, places = open_component(encoder, kind, dtype, variant, **fields)
  tokenizer = load_tokenizer(folder / f"tokenizer{suffix}")
  tokens = tokenizer.backend.get_vocab_size()
  if model.vocab_size != tokens:
    raise CheckpointError(f"{folder}: the vocab_size of {encoder.name}/ is {model.vocab_size}, expected {tokens}")
  if tokenizer.length > model.max_position_embeddings:
    raise CheckpointError(f"{folder}: the tokenizer gives {tokenizer.length} tokens, the text encoder takes "
                          f"{model.max_position_embeddings} (model_max_length of tokenizer_config.json, 77 where it "
                          "has none, and max_position_embeddings of config.json)")
  places = additions.merged(encoder.name, model, places, COMPONENTS[kind].table)
  model, places, tokenizer = additions.with_tokens(encoder.name, model, places, tokenizer, COMPONENTS[kind].table)
  shapes: dict[str, tuple[int, ...]] = {"text": (tokenizer.length, model.hidden_size)}
  if isinstance(model, CLIPTextModelWithProjection):
    shapes["pooled"] = (model.projection_dim,)
  apply = jax.jit(lambda params, ids: model.apply({"params": params}, ids))

  def encode(ids: np.ndarray, mask: np.ndarray | None) -> dict[str, Array]:
    del mask
    outputs = apply(load_on_device(places, dtype), jnp.asarray(ids))
    return dict(zip(shapes, outputs if "pooled" in shapes else (outputs,)))

  return TextEncoder(encoder, kind, model, tokenizer, shapes, encode, variant=variant, additions=additions,
                     network=encoder.name)


def open_clip_pair(folder: Path, dtype: Any, zeros_for_empty: bool, variant: str = "",
                   additions: Additions = NONE) -> TextEncoderPair:
  """Opens the two text encoders of SDXL and their tokenizers; reads no weights.

  Both give the states of their penultimate layers without the final norm. `zeros_for_empty` is that of
  `TextEncoderPair`; other arguments and errors are those of `open_clip_text`.
  """
  first = open_clip_text(folder, dtype, variant, additions=additions, clip_skip=1, final_norm=False)
  second = open_clip_text(folder, dtype, variant, "_2", additions, clip_skip=1)
  lengths = [encoder.shapes["text"][0] for encoder in (first, second)]
  if lengths[0] != lengths[1]:
    raise CheckpointError(f"{folder}: tokenizer/ gives {lengths[0]} tokens and tokenizer_2/ {lengths[1]}; their "
                          "model_max_length has to be equal")
  return TextEncoderPair(first, second, zeros_for_empty)


def open_t5(folder: Path, dtype: Any, variant: str = "") -> TextEncoder:
  """Opens the T5 encoder in `text_encoder/` and `tokenizer/` of a prior's folder; reads no weights.

  Encoding puts one block at a time onto the device (`t5_stream`). Arguments, result and errors are those of
  `open_clip_text`.
  """
  model, read = open_parts(folder / "text_encoder", dtype, variant)
  tokenizer = load_t5_tokenizer(folder / "tokenizer")
  tokens = tokenizer.backend.get_vocab_size()
  if tokens > model.vocab_size:
    raise CheckpointError(f"{folder}: the text encoder's vocab_size is {model.vocab_size}, the tokenizer has {tokens} "
                          "tokens")

  def encode(ids: np.ndarray, mask: np.ndarray | None) -> dict[str, Array]:
    return {"text": encode_in_layers(read, model, jnp.asarray(ids), jnp.asarray(mask, jnp.int32))}

  return TextEncoder(folder / "text_encoder", "t5", model, tokenizer, {"text": (tokenizer.length, model.d_model)},
                     encode, variant=variant)


def cache_folder() -> Path:
  """Returns `$SDS_JAX_CACHE/text`, or `sds_jax/text` in $XDG_CACHE_HOME or ~/.cache where SDS_JAX_CACHE is unset.

  A user without a home folder, as in a container, has `sds_jax/text` in the folder of temporary files.
  """
  own = os.environ.get("SDS_JAX_CACHE")
  folder = Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sds_jax") / "text"
  try:
    return folder.expanduser()  # environment files are read by no shell that would expand `~`
  except RuntimeError:
    return Path(tempfile.gettempdir()) / "sds_jax" / "text"


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
  """Returns the embeddings of these names and shapes; None where the file is missing or, with a warning, damaged."""
  if not path.is_file():
    return None
  try:
    with safetensors.safe_open(path, framework="np") as file:
      arrays = {name: file.get_tensor(name) for name in file.keys()}
      digest = (file.metadata() or {}).get("digest")
    different = [f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}, not float32 {list(shape)}"
                 for name, shape in shapes.items()
                 if arrays[name].shape != shape or arrays[name].dtype != np.float32]
    # The digest contains the key, so a file under another's name is found out as well.
    if not different and digest == _digest(path, arrays):
      return {name: arrays[name] for name in shapes}
    problem = "; ".join(different) or "their digest is not the one that was stored with them"
  except (safetensors.SafetensorError, KeyError, OSError, TypeError) as error:
    problem = error
  warnings.warn(f"the stored embeddings in {path} are damaged and made again: {problem}", stacklevel=3)
  return None


def _digest(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
  """Returns a digest of embeddings and of the key that they are stored under."""
  digest = hashlib.sha256(path.stem.encode())
  for name in sorted(arrays):
    digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
    digest.update(np.ascontiguousarray(arrays[name]).tobytes())
  return digest.hexdigest()


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Stores embeddings; warns where the disk refuses."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = dict(digest=_digest(path, arrays))
    write_atomically(path, lambda temporary: save_file(dict(arrays), temporary, metadata=metadata))
  except (OSError, safetensors.SafetensorError) as error:
    warnings.warn(f"the embeddings of the prompts can't be kept for the next run in {path.parent}: {error}",
                  stacklevel=3)
