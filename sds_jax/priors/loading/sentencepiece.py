"""Reads unigram models of SentencePiece (arXiv:1808.06226) for the `tokenizers` library.

A `.model` file is a protocol buffer. Only the fields that a tokenizer needs are parsed, so neither SentencePiece nor
compiled message classes have to be installed. The field numbers are those of `sentencepiece_model.proto`.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import struct

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from sds_jax.priors.loading.added_tokens import LARGEST_VOCABULARY, library_errors
from sds_jax.priors.loading.charsmap import check_charsmap
from sds_jax.priors.loading.files import LARGEST_TEXT, CheckpointError, check_file
from sds_jax.priors.networks.config_check import shown

# Numbers in the protocol buffers of SentencePiece.
_UNIGRAM, _UNKNOWN = 1, 2
"""model_type in the trainer's settings; type of the piece for unknown text."""

LONGEST_PIECE, LARGEST_SCORE = 1000, 1e30
"""Upper limits of the characters of a piece and of a score's magnitude."""

Fields = dict[int, list[int | bytes]]


def load_unigram(path: Path, extra_ids: int) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a SentencePiece file, with the special tokens of T5 in transformers.

  Args:
    path: the `.model` file.
    extra_ids: number of tokens <extra_id_i> behind the file's pieces, the last one first.

  The ids are SentencePiece's, except where a combining accent follows a normalized character (a space, a ligature) and
  for the special tokens: these ids are transformers'.

  Returns:
    A tokenizer without end token, padding and truncation; <pad>, </s> and the extra tokens are recognised in texts.

  Raises:
    CheckpointError: the file is missing, damaged or of a kind other than unigrams of words that begin with a space.
  """
  check_file(path, LARGEST_TEXT)
  try:
    model = _fields(path.read_bytes(), LARGEST_VOCABULARY + 8)
    trainer, normalizer = (_fields(_bytes(model[number][-1])) if number in model else {} for number in (2, 3))
    pieces = [_fields(_bytes(piece)) for piece in model[1]]
    vocabulary = [(_bytes(piece[1][-1]).decode(), _score(piece)) for piece in pieces]
    check_vocabulary(vocabulary)
    unknown = next(i for i, piece in enumerate(pieces) if piece.get(3, [1])[-1] == _UNKNOWN)
    charsmap = _bytes(normalizer.get(2, [b""])[-1])
    if charsmap:
      check_charsmap(charsmap)
    for what, fields, number, default, needed in (
        ("model_type", trainer, 3, _UNIGRAM, _UNIGRAM), ("treat_whitespace_as_suffix", trainer, 24, 0, 0),
        ("byte_fallback", trainer, 35, 0, 0), ("add_dummy_prefix", normalizer, 3, 1, 1),
        ("remove_extra_whitespaces", normalizer, 4, 1, 1), ("escape_whitespaces", normalizer, 5, 1, 1)):
      if fields.get(number, [default])[-1] != needed:
        raise CheckpointError(f"{path}: {what}={shown(fields[number][-1])} is not supported; supported: {needed}")
    # Files may hold extra tokens of their own, which keep their numbers.
    known = {piece for piece, _ in vocabulary}
    extra = [token for token in (f"<extra_id_{i}>" for i in reversed(range(extra_ids))) if token not in known]
    vocabulary += [(token, 0.0) for token in extra]
    with library_errors(f"{path} is damaged or no SentencePiece model"):
      backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
      if charsmap:
        backend.normalizer = normalizers.Precompiled(charsmap)
  except CheckpointError:
    raise
  except Exception as error:  # damaged files raise any error
    raise CheckpointError(f"{path} is damaged or no SentencePiece model: {type(error).__name__}: {error}") from error
  backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
  backend.add_special_tokens([token for token in ("<pad>", "</s>", "<unk>") if token in known]
                             + [f"<extra_id_{i}>" for i in range(extra_ids)])
  return backend


def _score(piece: Fields) -> float:
  return struct.unpack("<f", _bytes(piece[2][-1]))[0] if 2 in piece else 0.0


def _bytes(value: int | bytes) -> bytes:
  if not isinstance(value, bytes):
    raise ValueError("a number stands where a text is expected")
  return value


def check_vocabulary(vocabulary: list[tuple[str, float]]) -> None:
  """Raises ValueError for pieces with which the library would not end, or end in a panic.

  Args:
    vocabulary: (piece, score) of all pieces.
  """
  if len(vocabulary) > LARGEST_VOCABULARY:
    raise ValueError(f"it has {len(vocabulary)} pieces, at most {LARGEST_VOCABULARY} are read")
  pieces: set[str] = set()
  for number, (piece, score) in enumerate(vocabulary):
    if not piece or piece in pieces or len(piece) > LONGEST_PIECE:
      problem = ("stands there twice" if piece in pieces else
                 f"has {len(piece)} characters, expected 1 to {LONGEST_PIECE}")
      raise ValueError(f"piece {number}, {shown(piece)}, {problem}")
    if not -LARGEST_SCORE < score < LARGEST_SCORE:
      raise ValueError(f"piece {number}, {shown(piece)}, has the score {score:g}")
    pieces.add(piece)


def _fields(data: bytes, limit: int = 10_000) -> Fields:
  """Returns {field number: values in order} of one message; texts, messages and floats stay bytes.

  Raises:
    ValueError: damaged, or more than `limit` fields.
  """
  fields: Fields = {}
  for count, (number, value) in enumerate(_walk(data)):
    if count == limit:
      raise ValueError(f"it has more than {limit} fields" + (" and so too many pieces" if limit > 10_000 else ""))
    fields.setdefault(number, []).append(value)
  return fields


def _walk(data: bytes) -> Iterator[tuple[int, int | bytes]]:
  at = 0
  while at < len(data):
    # The number of a field stands above the three bits of its wire type.
    key, at = _varint(data, at)
    wire = key & 7
    if wire == 0:
      value, at = _varint(data, at)
    elif wire in (1, 2, 5):
      length, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
      value, at = data[at:at + length], at + length
    else:
      raise ValueError(f"wire type {wire} at byte {at}")
    if at > len(data):
      raise ValueError(f"it ends within a field that should end at byte {at}")
    yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """Returns (value, end position) of a varint: seven bits a byte, the lowest first."""
  value = shift = 0
  while True:
    byte = data[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at
    if shift >= 70:  # longer ones are illegal, and would take the square of their length in time
      raise ValueError(f"a number of more than ten bytes ends behind byte {at}")
