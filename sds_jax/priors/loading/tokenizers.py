"""CLIP's byte-pair tokenizer, from the `tokenizer/` folder of a diffusers checkpoint.

The folder has vocab.json and merges.txt, or a tokenizer.json alone, as transformers 5 writes it.

The ids are those of transformers' CLIPTokenizer. The `tokenizers` library does the work, since importing transformers
takes seconds.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any
import warnings

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from sds_jax.priors.loading.added_tokens import (LARGEST_VOCABULARY, AddedToken, add_tokens, library_errors,
                                                 read_added_tokens)
from sds_jax.priors.loading.composed import as_folder
from sds_jax.priors.loading.files import CheckpointError, is_there, read_json, read_text
from sds_jax.priors.networks.config_check import shown

SLOW, FAST = ("vocab.json", "merges.txt"), "tokenizer.json"
"""The files of a tokenizer: two, or one with the content of both."""

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
    rows_of: {id of the backend: ids in its place}, for tokens of several vectors (`embeddings`).
  """
  backend: tokenizers.Tokenizer
  bos: int
  eos: int
  pad: int
  length: int
  rows_of: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)

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
      with library_errors(f"the tokenizer cannot cut {shown(text)} into tokens"):
        encoded = self.backend.encode(text, add_special_tokens=False)
      # (id, where its token begins in the text)
      tokens = [(number, first) for token, (first, _) in zip(encoded.ids, encoded.offsets)
                for number in self.rows_of.get(token, (token,))]
      # Two places are for start and end.
      limit = self.length - 2
      if len(tokens) > limit:
        warnings.warn(f"the text encoder sees the first {limit} tokens only; cut off from {text!r}: "
                      f"{text[tokens[limit][1]:]!r}", stacklevel=2)
      ids = [self.bos, *(number for number, _ in tokens[:limit]), self.eos]
      row[:len(ids)] = ids
    return rows


def load_tokenizer(folder: str | os.PathLike) -> CLIPTokenizer:
  """Returns the tokenizer in a folder with vocab.json and merges.txt, or with tokenizer.json.

  tokenizer_config.json, special_tokens_map.json and added_tokens.json are read where they exist. Tokens that a file
  adds to the vocabulary are tokens of their own.

  Raises:
    CheckpointError: a file is missing, damaged, of another kind of tokenizer, or doesn't fit the others.
  """
  folder, fast = as_folder(folder), {}
  if is_there(folder / FAST):
    fast = read_json(folder / FAST)
  if fast and not all(is_there(folder / name) for name in SLOW):
    path, merges_path = folder / FAST, folder / FAST
    vocabulary, merges = _read_fast(path, fast)
  else:
    path, merges_path = (folder / name for name in SLOW)
    vocabulary, merges = _read_vocabulary(path, read_json(path)), _read_merges(merges_path)
  config, added = _read_config(folder, fast.get("added_tokens"))
  special = {role: vocabulary.get(config[role]) for role in _DEFAULTS}
  for token in added:  # a token of a role may be an added one
    special |= {role: token.id for role, number in special.items() if number is None and config[role] == token.content}
  for role, token_id in special.items():
    if token_id is None:
      raise CheckpointError(f"{path} lacks the {role} {shown(config[role])}")
  with library_errors(f"{folder}: {merges_path.name} doesn't fit {path.name}"):
    model = models.BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>",
                       fuse_unk=False, unk_token=config["unk_token"])
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
      [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()])
    # The words of the pattern are kept and what lies between is removed: `invert` turns Split around.
    backend.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False)])
    roles = {config[role] for role in _DEFAULTS}
    backend.add_special_tokens(sorted(roles & vocabulary.keys()))
    add_tokens(backend, [token for token in added if token.content not in roles & vocabulary.keys()])
  return CLIPTokenizer(backend, special["bos_token"], special["eos_token"], special["pad_token"],
                       config["model_max_length"])


def _read_fast(path: Path, content: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
  """Returns vocabulary and merges of a tokenizer.json, after checking that it cuts texts as CLIP does."""
  model = content.get("model")
  if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
    kind = model.get("type") if isinstance(model, dict) else model
    raise CheckpointError(f"{path}: model {shown(kind)} is not supported; supported: 'BPE'")
  for key, legal in (("end_of_word_suffix", ("</w>",)), ("continuing_subword_prefix", ("", None)),
                     ("byte_fallback", (False, None)), ("fuse_unk", (False, None)), ("dropout", (None,)),
                     ("ignore_merges", (False, None))):
    if model.get(key) not in legal:
      raise CheckpointError(f"{path}: model.{key}={shown(model.get(key))} is not supported; supported: {legal[0]!r}")
  for key, expected in (("normalizer", ["NFC", "Replace", "Lowercase"]), ("pre_tokenizer", ["Split", "ByteLevel"])):
    kinds = [part.get("type") for part in steps(content.get(key))]
    if kinds != expected:
      raise CheckpointError(f"{path}: {key} {shown(kinds)} is not supported; supported: {expected}, those of CLIP")
  vocabulary = model.get("vocab")
  if not isinstance(vocabulary, dict):
    raise CheckpointError(f"{path}: model.vocab={shown(vocabulary)} should map each token to its number")
  return _read_vocabulary(path, vocabulary), _fast_merges(path, model.get("merges"))


def _fast_merges(path: Path, listed: Any) -> list[tuple[str, str]]:
  if not isinstance(listed, list):
    raise CheckpointError(f"{path}: model.merges={shown(listed)} should be a list of pairs of tokens")
  _check_count(path, len(listed))
  merges = []
  for pair in listed:
    pair = pair.split(" ") if isinstance(pair, str) else pair
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
      raise CheckpointError(f"{path}: model.merges has {shown(pair)}, expected pairs of tokens")
    merges.append((pair[0], pair[1]))
  return merges


def steps(part: Any) -> list[dict[str, Any]]:
  """Returns the steps of a normalizer or pre-tokenizer of a tokenizer.json, nested sequences in one list."""
  found, todo = [], [part]
  while todo:
    part = todo.pop(0)
    if isinstance(part, dict) and part.get("type") == "Sequence":
      inner = part.get("normalizers") or part.get("pretokenizers") or []
      todo = (inner if isinstance(inner, list) else [inner]) + todo
    elif part is not None:
      found.append(part if isinstance(part, dict) else dict(type=part))
  return found


def _read_vocabulary(path: Path, vocabulary: dict[str, Any]) -> dict[str, int]:
  if not all(type(value) is int for value in vocabulary.values()):
    wrong = next(item for item in vocabulary.items() if type(item[1]) is not int)
    raise CheckpointError(f"{path} is no vocabulary: it should map each token to its number, and has "
                          f"{shown(wrong[0])}: {shown(wrong[1])}")
  if len(vocabulary) > LARGEST_VOCABULARY:
    raise CheckpointError(f"{path} has {len(vocabulary)} tokens, at most {LARGEST_VOCABULARY} are read")
  if "" in vocabulary:
    raise CheckpointError(f"{path} has an empty token")
  # Gaps or doubles would shift the rows of the embedding table.
  if sorted(vocabulary.values()) != list(range(len(vocabulary))):
    raise CheckpointError(f"{path}: the numbers of its {len(vocabulary)} tokens are not 0 to {len(vocabulary) - 1}")
  return vocabulary


def _check_count(path: Path, merges: int) -> None:
  if merges > LARGEST_VOCABULARY:
    raise CheckpointError(f"{path} has {merges} merges, at most {LARGEST_VOCABULARY} are read")


def _read_merges(path: Path) -> list[tuple[str, str]]:
  merges, text = [], read_text(path)
  _check_count(path, text.count("\n"))
  for number, line in enumerate(text.split("\n"), start=1):
    # Only the first line may be a comment: "#version" can be a merge further down.
    if not line.strip() or (number == 1 and line.startswith("#version")):
      continue
    pair = line.split()
    if len(pair) != 2:
      raise CheckpointError(f"{path}, line {number}: expected two tokens, found {shown(line)}")
    merges.append((pair[0], pair[1]))
  return merges


def _read_config(folder: Path, listed: Any) -> tuple[dict[str, Any], list[AddedToken]]:
  """Returns the special tokens as strings and model_max_length; and the added tokens.

  `listed` is `added_tokens` of tokenizer.json, or None.
  """
  values = {name: read_json(folder / name) if is_there(folder / name) else {}
            for name in ("special_tokens_map.json", "tokenizer_config.json")}
  config = values["tokenizer_config.json"]
  kind = config.get("tokenizer_class", "CLIPTokenizer")
  if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: tokenizer_class={shown(kind)} is not supported; "
                          "supported: 'CLIPTokenizer'")
  if config.get("do_lower_case", True) is not True:
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: do_lower_case={shown(config['do_lower_case'])} is not "
                          "supported; supported: True")
  # transformers' order: in older folders special_tokens_map.json wins (SD 2.x pads with "!" by that file alone); newer
  # folders have added_tokens_decoder, and special_tokens_map.json is not read.
  last = {} if "added_tokens_decoder" in config else values["special_tokens_map.json"]
  tokens = dict(_DEFAULTS)
  for role, token in [*config.items(), *last.items()]:
    if role in tokens and token is not None:
      tokens[role] = token.get("content") if isinstance(token, dict) else token
  for role, token in tokens.items():
    if not isinstance(token, str):
      raise CheckpointError(f"{folder / _file_of(role, last)}: {role}={shown(token)} is no token")
  length = config.get("model_max_length")
  if length is not None and not (type(length) in (int, float) and length >= 2):
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: model_max_length={shown(length)} is no length")
  # A tokenizer saved without a length has 1e30 or null.
  length = int(length) if length is not None and length < 1e6 else _DEFAULT_LENGTH
  added = read_added_tokens(folder, config, values["special_tokens_map.json"], listed)
  return tokens | dict(model_max_length=length), added


def _file_of(role: str, last: dict[str, Any]) -> str:
  """Returns the name of the file whose value of a role counts."""
  return "special_tokens_map.json" if last.get(role) is not None else "tokenizer_config.json"
