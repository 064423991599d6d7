"""Text, once: prompts become embeddings before a run, and the encoder's parameters are gone again.

A text encoder is opened by its files' headers alone. Its parameters are read when prompts come that were never encoded
before, and kept no longer than that takes. What came out is kept on disk, under a name made of everything that it
depends on: the encoder's configuration and weights, the dtype, and the tokens.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from sds_jax.priors.loading.checkpoint import COMPONENTS, load_on_device, open_component, weight_files
from sds_jax.priors.loading.files import read_json, write_atomically
from sds_jax.priors.loading.t5_stream import encode_in_layers, open_parts
from sds_jax.priors.loading.t5_tokenizer import T5Tokenizer, load_t5_tokenizer
from sds_jax.priors.loading.tokenizers import CLIPTokenizer, load_tokenizer
from sds_jax.types import Array

_VERSION = "1"
"""Part of every name in the cache; to be raised when the same files would give other embeddings."""

_PIECES, _PIECE_BYTES = 256, 65536
"""Of a weight file so many pieces, evenly spread, stand for all of it; smaller files are looked at whole."""


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """Callable: n prompts -> embeddings [n, T, D] float32.

  Attributes:
    folder: the component's; says which encoder it is.
    kind: a key of `checkpoint.COMPONENTS`, "clip_text" or "t5".
    model: the network.
    tokenizer: its tokenizer.
    encode: (ids [n, T], mask [n, T] or None) -> [n, T, D]; reads the parameters and drops them.
  """
  folder: Path
  kind: str
  model: nn.Module
  tokenizer: CLIPTokenizer | T5Tokenizer
  encode: Callable[[np.ndarray, np.ndarray | None], Array]

  @property
  def width(self) -> int:
    """D."""
    return self.model.hidden_size if self.kind == "clip_text" else self.model.d_model

  def __call__(self, prompts: Sequence[str]) -> Array:
    """From the cache, or computed and put there. Reads files, so not for use under jit.

    Raises:
      CheckpointError: the weights, which were there when the encoder was opened, no longer are.
    """
    ids, mask = self.tokenizer(prompts) if self.kind == "t5" else (self.tokenizer(prompts), None)
    place = cache_folder() / f"{self._key(ids, mask)}.safetensors"
    stored = _read(place, (*ids.shape, self.width))
    if stored is not None:
      return jnp.asarray(stored)
    embedded = self.encode(ids, mask).astype(jnp.float32)
    _write(place, np.asarray(embedded))
    return embedded

  def _key(self, ids: np.ndarray, mask: np.ndarray | None) -> str:
    """A digest of all that the embeddings depend on."""
    config = read_json(self.folder / "config.json")
    files = [_identity(path) for path in weight_files(self.folder, COMPONENTS[self.kind].stem)]
    said = [_VERSION, self.kind, config, jnp.dtype(self.model.dtype).name, files, ids.tolist(),
            None if mask is None else mask.tolist()]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def open_text_encoder(folder: Path, kind: str, dtype: Any) -> TextEncoder:
  """The encoder in `text_encoder/` and `tokenizer/` of a prior's folder; reads no weights.

  Args:
    folder: the prior's.
    kind: "clip_text", which goes onto the device as a whole, or "t5", which goes there block by block.
    dtype: of parameters and activations.

  Raises:
    CheckpointError: a file is missing or damaged, or the weights' names or shapes are not the network's.
    ValueError: config.json asks for something that isn't supported.
  """
  place = folder / "text_encoder"
  if kind == "t5":
    model, read = open_parts(place, dtype)
    tokenizer = load_t5_tokenizer(folder / "tokenizer")
    return TextEncoder(place, kind, model, tokenizer,
                       lambda ids, mask: encode_in_layers(read, model, jnp.asarray(ids), jnp.asarray(mask, jnp.int32)))
  model, places = open_component(place, kind, dtype)
  apply = jax.jit(lambda params, ids: model.apply({"params": params}, ids))
  return TextEncoder(place, kind, model, load_tokenizer(folder / "tokenizer"),
                     lambda ids, mask: apply(load_on_device(places, dtype), jnp.asarray(ids)))


def cache_folder() -> Path:
  """`$SDS_JAX_CACHE/text`; without that variable `sds_jax/text` in $XDG_CACHE_HOME or ~/.cache."""
  if os.environ.get("SDS_JAX_CACHE"):
    return Path(os.environ["SDS_JAX_CACHE"]) / "text"
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sds_jax" / "text"


def _identity(path: Path) -> list[Any]:
  """A weight file's name, size and the digest of pieces of it (all of it, for a small one)."""
  size, digest = path.stat().st_size, hashlib.sha256()
  with open(path, "rb") as file:
    if size <= _PIECES * _PIECE_BYTES:
      digest.update(file.read())
    else:
      for i in range(_PIECES):
        file.seek(i * (size - _PIECE_BYTES) // (_PIECES - 1))
        digest.update(file.read(_PIECE_BYTES))
  return [path.name, size, digest.hexdigest()]


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
  """Embeddings of the given shape; None where there are none, or, with a warning, something else."""
  if not path.is_file():
    return None
  try:
    array = load_file(path)["text"]
    if array.shape == shape and array.dtype == np.float32:
      return array
    problem = f"{array.dtype} {list(array.shape)}, not float32 {list(shape)}"
  except (safetensors.SafetensorError, KeyError, OSError) as error:
    problem = error
  warnings.warn(f"the stored embeddings in {path} are damaged and made again: {problem}", stacklevel=3)
  return None


def _write(path: Path, array: np.ndarray) -> None:
  """Stores embeddings; what can't be stored is only warned of."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: save_file({"text": array}, temporary))
  except (OSError, safetensors.SafetensorError) as error:
    warnings.warn(f"the embeddings of the prompts can't be kept for the next run in {path.parent}: {error}",
                  stacklevel=3)
