"""CLIP's byte-pair tokenizer, from the `tokenizer/` folder of a diffusers checkpoint.

The ids are those of transformers' CLIPTokenizer. The `tokenizers` library does the work, since importing transformers
takes seconds.
"""
from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any
import warnings

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from sds_jax.priors.loading.files import CheckpointError, is_there, read_json, read_text

_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
"""Pattern of a word in CLIP's tokenizer (arXiv:2103.00020, reference implementation)."""

_DEFAULTS = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
                 pad_token="<|endoftext|>")
_DEFAULT_LENGTH = 77
"""Length of all published CLIP text encoders, for a tokenizer_config.json without a length."""


@dataclasses.dataclass(frozen=True)
class CLIPTokenizer:
  """Callable: texts -> ids.

  Attributes:
    backend: splits text into ids, without the special tokens.
    bos, eos, pad: ids of the start, the end and the padding.
    length: number of tokens of every row (model_max_length).
  """
  backend: tokenizers.Tokenizer
  bos: int
  eos: int
  pad: int
  length: int

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Returns ids [n, length] int32: start, words, end, padding.

    Longer texts are cut, with a warning that quotes the cut part.

    Raises:
      TypeError: a single string was given.
    """
    if isinstance(texts, str):
      raise TypeError(f"a list of texts is expected, not the one text {texts!r}")
    rows = np.full((len(texts), self.length), self.pad, np.int32)
    for row, text in zip(rows, texts):
      encoded = self.backend.encode(text, add_special_tokens=False)
      limit = self.length - 2
      if len(encoded.ids) > limit:
        warnings.warn(f"the text encoder sees the first {limit} tokens only; cut off from {text!r}: "
                      f"{text[encoded.offsets[limit][0]:]!r}", stacklevel=2)
      ids = [self.bos, *encoded.ids[:limit], self.eos]
      row[:len(ids)] = ids
    return rows


def load_tokenizer(folder: str | os.PathLike) -> CLIPTokenizer:
  """Returns the tokenizer in a folder with vocab.json and merges.txt.

  tokenizer_config.json and special_tokens_map.json are read where they exist.

  Raises:
    CheckpointError: a file is missing, damaged, of another kind of tokenizer, or doesn't fit the others.
  """
  folder = Path(folder)
  vocabulary, merges = _read_vocabulary(folder / "vocab.json"), _read_merges(folder / "merges.txt")
  config = _read_config(folder)
  special = {role: vocabulary.get(token) for role, token in config.items() if role in _DEFAULTS}
  for role, token_id in special.items():
    if token_id is None:
      raise CheckpointError(f"{folder / 'vocab.json'} lacks the {role} {config[role]!r}")
  try:
    model = models.BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>",
                       fuse_unk=False, unk_token=config["unk_token"])
  except Exception as error:  # the library raises bare Exceptions
    raise CheckpointError(f"{folder}: merges.txt doesn't fit vocab.json: {error}") from error
  backend = tokenizers.Tokenizer(model)
  backend.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()])
  backend.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False)])
  backend.add_special_tokens(sorted({config[role] for role in _DEFAULTS}))
  return CLIPTokenizer(backend, special["bos_token"], special["eos_token"], special["pad_token"],
                       config["model_max_length"])


def _read_vocabulary(path: Path) -> dict[str, int]:
  vocabulary = read_json(path)
  if not all(isinstance(value, int) for value in vocabulary.values()):
    raise CheckpointError(f"{path} is no vocabulary: it should map each token to its number")
  if sorted(vocabulary.values()) != list(range(len(vocabulary))):
    raise CheckpointError(f"{path}: the numbers of its {len(vocabulary)} tokens are not 0 to {len(vocabulary) - 1}")
  return vocabulary


def _read_merges(path: Path) -> list[tuple[str, str]]:
  merges = []
  for number, line in enumerate(read_text(path).split("\n"), start=1):
    if not line.strip() or (number == 1 and line.startswith("#version")):
      continue
    pair = line.split()
    if len(pair) != 2:
      raise CheckpointError(f"{path}, line {number}: expected two tokens, found {line!r}")
    merges.append((pair[0], pair[1]))
  return merges


def _read_config(folder: Path) -> dict[str, Any]:
  """Returns the special tokens as strings, and model_max_length."""
  values = {name: read_json(folder / name) if is_there(folder / name) else {}
            for name in ("special_tokens_map.json", "tokenizer_config.json")}
  config = values["tokenizer_config.json"]
  kind = config.get("tokenizer_class", "CLIPTokenizer")
  if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: tokenizer_class={kind!r} is not supported; "
                          "supported: 'CLIPTokenizer'")
  if not config.get("do_lower_case", True):
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: do_lower_case=False is not supported; supported: True")
  # transformers' order: in older folders special_tokens_map.json wins (SD 2.x pads with "!" by that file alone); newer
  # folders have added_tokens_decoder, and special_tokens_map.json is not read.
  last = {} if "added_tokens_decoder" in config else values["special_tokens_map.json"]
  tokens = dict(_DEFAULTS)
  for role, token in [*config.items(), *last.items()]:
    if role in tokens and token is not None:
      tokens[role] = token.get("content") if isinstance(token, dict) else token
  for role, token in tokens.items():
    if not isinstance(token, str):
      raise CheckpointError(f"{folder}: {role}={token!r} is no token")
  length = config.get("model_max_length")
  if length is not None and not (isinstance(length, (int, float)) and length >= 2):
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: model_max_length={length!r} is no length")
  # A tokenizer saved without a length has 1e30 or null.
  return tokens | dict(model_max_length=int(length) if length is not None and length < 1e6 else _DEFAULT_LENGTH)
