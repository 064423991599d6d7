"""T5's tokenizer (SentencePiece unigrams, arXiv:1808.06226), from tokenizer.json or spiece.model."""
from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any
import warnings

import numpy as np
import tokenizers
from tokenizers import models

from sds_jax.priors.loading.added_tokens import add_tokens, library_errors, read_added_tokens
from sds_jax.priors.loading.charsmap import check_charsmap
from sds_jax.priors.loading.files import CheckpointError, is_there, read_json
from sds_jax.priors.loading.sentencepiece import check_vocabulary, load_unigram
from sds_jax.priors.loading.tokenizers import steps
from sds_jax.priors.networks.config_check import shown

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
      with library_errors(f"the tokenizer cannot cut {shown(text)} into tokens"):
        encoded = self.backend.encode(text, add_special_tokens=False)
      # One place is for the end; T5 has no start token.
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
  config, special_map = (read_json(folder / name) if is_there(folder / name) else {}
                         for name in ("tokenizer_config.json", "special_tokens_map.json"))
  if config.get("tokenizer_class", _CLASSES[0]) not in _CLASSES:
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: tokenizer_class={shown(config['tokenizer_class'])} is "
                          f"not supported; supported: {', '.join(map(repr, _CLASSES))}")
  path = next((folder / name for name in FILES if is_there(folder / name)), None)
  if path is None:
    raise CheckpointError(f"{folder} has no tokenizer: expected {' or '.join(FILES)}")
  listed = None
  if path.suffix == ".json":
    content = read_json(path)
    backend, listed = _from_json(path, content), content.get("added_tokens")
  else:
    backend = load_unigram(path, _extra_ids(folder, config))
  with library_errors(f"{path} does not fit the added tokens"):
    add_tokens(backend, read_added_tokens(folder, config, special_map, listed))
  special = {}
  for role, default in (("eos_token", "</s>"), ("pad_token", "<pad>")):
    token = config.get(role) or default
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
      raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {role}={shown(token)} is no token")
    special[role] = backend.token_to_id(token)
    if special[role] is None:
      raise CheckpointError(f"{path} lacks the {role} {token!r}")
  return T5Tokenizer(backend, special["eos_token"], special["pad_token"], length, lower)


def _extra_ids(folder: Path, config: Mapping[str, Any]) -> int:
  count = config.get("extra_ids", 100)
  if type(count) is not int or not 0 <= count <= 10_000:
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: extra_ids={shown(count)} should be a whole number from "
                          "0 to 10,000")
  return count


_STEPS = {"normalizer": ("Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Replace"),
          "pre_tokenizer": ("WhitespaceSplit", "Metaspace", "Whitespace")}
"""Steps of T5's tokenizers in a tokenizer.json; further ones are refused."""
_PATTERNS = (" {2,}", r"\s+", r"\s{2,}")
"""Regular expressions of the step Replace; with others the library might not end."""


def _from_json(path: Path, content: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a tokenizer.json, without end token, padding and truncation.

  Only model and steps are taken, after all that the library takes unchecked is checked.
  """
  model = content.get("model")
  if not isinstance(model, dict):
    raise CheckpointError(f"{path} is damaged or no tokenizer: model={shown(model)} should be an object")
  if model.get("type") != "Unigram":
    kind = model.get("type")
    kind = kind if isinstance(kind, str) else shown(kind)
    raise CheckpointError(f"{path}: model {kind[:80]} is not supported; supported: Unigram")
  vocabulary, unknown = model.get("vocab"), model.get("unk_id")
  if not isinstance(vocabulary, list) or not all(
      isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str) and type(piece[1]) in (int, float)
      for piece in vocabulary):
    raise CheckpointError(f"{path}: model.vocab={shown(vocabulary)} should be a list of pieces with their scores")
  if type(unknown) is not int or not 0 <= unknown < len(vocabulary):
    raise CheckpointError(f"{path}: model.unk_id={shown(unknown)} should be the number of a piece")
  if model.get("byte_fallback") not in (None, False):
    raise CheckpointError(f"{path}: model.byte_fallback={shown(model['byte_fallback'])} is not supported; "
                          "supported: false")
  try:
    check_vocabulary([(piece, float(score)) for piece, score in vocabulary])
    for key, kinds in _STEPS.items():
      for step in steps(content.get(key)):
        _check_step(key, step, kinds)
  except (ValueError, OverflowError) as error:
    raise CheckpointError(f"{path}: {error}") from error
  with library_errors(f"{path} is damaged or no tokenizer"):
    backend = tokenizers.Tokenizer(models.Unigram([(piece, float(score)) for piece, score in vocabulary],
                                                  unk_id=unknown, byte_fallback=False))
    # A fresh tokenizer with the checked parts alone: what the file holds besides is not taken.
    kept = json.loads(backend.to_str()) | {key: content.get(key) for key in _STEPS}
    return tokenizers.Tokenizer.from_str(json.dumps(kept))


def _check_step(key: str, step: Mapping[str, Any], kinds: tuple[str, ...]) -> None:
  """Raises ValueError for a step of a tokenizer.json that T5's tokenizers do not have, or with which harm is done."""
  if step.get("type") not in kinds:
    raise ValueError(f"{key} {shown(step.get('type'))} is not supported; supported: {', '.join(kinds)}")
  if step["type"] == "Precompiled":
    table = step.get("precompiled_charsmap")
    if not isinstance(table, str):
      raise ValueError(f"precompiled_charsmap={shown(table)} should be a text in base64")
    if table:
      # The library walks the table unchecked.
      check_charsmap(base64.b64decode(table, validate=True))
  if step["type"] == "Replace":
    pattern = step.get("pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    if not (isinstance(pattern.get("String"), str) and pattern["String"] or pattern.get("Regex") in _PATTERNS):
      raise ValueError(f"{key} Replace with the pattern {shown(step.get('pattern'))} is not supported; supported: "
                       f"{', '.join(map(repr, _PATTERNS))}")
