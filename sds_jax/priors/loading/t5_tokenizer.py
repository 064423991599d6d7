"""T5's tokenizer (SentencePiece unigrams, arXiv:1808.06226), from tokenizer.json or spiece.model."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any
import warnings

import numpy as np
import tokenizers

from sds_jax.priors.loading.files import LARGEST_TEXT, CheckpointError, check_file, is_there, read_json
from sds_jax.priors.loading.sentencepiece import load_unigram

_CLASSES = ("T5Tokenizer", "T5TokenizerFast")

FILES = ("tokenizer.json", "spiece.model")
"""The files of a tokenizer; the first existing one is read."""


@dataclasses.dataclass(frozen=True)
class T5Tokenizer:
  """Callable: texts -> (ids, mask).

  Attributes:
    backend: splits text into ids, without the special tokens.
    eos, pad: ids of the end and of the padding (1 and 0 in published vocabularies).
    length: number of tokens of every row; DeepFloyd IF has 77.
    lower: whether texts are lower-cased and stripped first, like the captions of DeepFloyd IF.
  """
  backend: tokenizers.Tokenizer
  eos: int
  pad: int
  length: int = 77
  lower: bool = True

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids [n, length] int32 (words, end, padding) and mask [n, length] bool, False on padding.

    Longer texts are cut, with a warning that quotes the cut part.

    Raises:
      TypeError: a single string was given.
    """
    if isinstance(texts, str):
      raise TypeError(f"a list of texts is expected, not the one text {texts!r}")
    ids = np.full((len(texts), self.length), self.pad, np.int32)
    mask = np.zeros((len(texts), self.length), bool)
    for row, text in enumerate(texts):
      text = text.lower().strip() if self.lower else text
      encoded = self.backend.encode(text, add_special_tokens=False)
      limit = self.length - 1
      if len(encoded.ids) > limit:
        warnings.warn(f"the text encoder sees the first {limit} tokens only; cut off from {text!r}: "
                      f"{text[encoded.offsets[limit][0]:]!r}", stacklevel=2)
      tokens = [*encoded.ids[:limit], self.eos]
      ids[row, :len(tokens)], mask[row, :len(tokens)] = tokens, True
    return ids, mask


def load_t5_tokenizer(folder: str | os.PathLike, length: int = 77, lower: bool = True) -> T5Tokenizer:
  """Returns the tokenizer in a folder with tokenizer.json or spiece.model (DeepFloyd's folders).

  tokenizer.json is preferred; tokenizer_config.json is read where there is one.

  Raises:
    CheckpointError: both are missing, or the file is damaged or of another kind of tokenizer.
  """
  folder = Path(folder)
  config = read_json(folder / "tokenizer_config.json") if is_there(folder / "tokenizer_config.json") else {}
  if config.get("tokenizer_class", _CLASSES[0]) not in _CLASSES:
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: tokenizer_class={config['tokenizer_class']!r} is not "
                          f"supported; supported: {', '.join(map(repr, _CLASSES))}")
  path = next((folder / name for name in FILES if is_there(folder / name)), None)
  if path is None:
    raise CheckpointError(f"{folder} has no tokenizer: expected {' or '.join(FILES)}")
  backend = _read_json(path) if path.suffix == ".json" else load_unigram(path, _extra_ids(folder, config))
  special = {}
  for role, default in (("eos_token", "</s>"), ("pad_token", "<pad>")):
    token = config.get(role) or default
    token = token["content"] if isinstance(token, dict) else token
    special[role] = backend.token_to_id(token)
    if special[role] is None:
      raise CheckpointError(f"{path} lacks the {role} {token!r}")
  return T5Tokenizer(backend, special["eos_token"], special["pad_token"], length, lower)


def _extra_ids(folder: Path, config: Mapping[str, Any]) -> int:
  count = config.get("extra_ids", 100)
  if not isinstance(count, int) or not 0 <= count <= 10_000:
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: extra_ids={count!r} should be a whole number from "
                          "0 to 10,000")
  return count


def _read_json(path: Path) -> tokenizers.Tokenizer:
  check_file(path, LARGEST_TEXT)
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises bare Exceptions
    raise CheckpointError(f"{path} is damaged or no tokenizer: {error}") from error
  if not isinstance(backend.model, tokenizers.models.Unigram):
    raise CheckpointError(f"{path}: model {type(backend.model).__name__} is not supported; supported: Unigram")
  backend.no_padding()
  backend.no_truncation()
  return backend
