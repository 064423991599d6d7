"""Tokens that a tokenizer's folder adds to its vocabulary, as textual inversion does, and errors of the library."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import tokenizers

from sds_jax.priors.loading.files import CheckpointError, is_there, read_json
from sds_jax.priors.networks.config_check import shown

LARGEST_VOCABULARY = 300_000
"""Upper limit of the tokens of a vocabulary; published ones have up to 256,000."""
_LARGEST_ADDED, _LONGEST = 10_000, 1000
"""Upper limits of the number of added tokens, and of the characters of one of them."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclasses.dataclass(frozen=True)
class AddedToken:
  """A token that is matched as a whole, before a text is cut into pieces.

  Attributes:
    content: the text of the token.
    path: the file that adds it.
    id: its number; None: the next free one.
    flags: options of `tokenizers.AddedToken`.
  """
  content: str
  path: Path
  id: int | None
  flags: tuple[tuple[str, bool], ...] = ()


def read_added_tokens(folder: Path, config: Mapping[str, Any], special: Mapping[str, Any],
                      listed: Any = None) -> list[AddedToken]:
  """Returns the tokens that the files of a tokenizer's folder add, each once, by their numbers.

  Args:
    folder: may hold added_tokens.json, {token: number}.
    config: content of tokenizer_config.json; `added_tokens_decoder`, {number: token}, and
      `additional_special_tokens` (`extra_special_tokens` of newer writers) are read.
    special: content of special_tokens_map.json; `additional_special_tokens` is read.
    listed: `added_tokens` of tokenizer.json, or None.

  Raises:
    CheckpointError: a value is of a wrong type, or two files give a token different numbers.
  """
  tokens = list(_listed(folder / "tokenizer.json", listed))
  path = folder / "tokenizer_config.json"
  decoder = config.get("added_tokens_decoder") or {}
  if not isinstance(decoder, dict):
    raise _wrong(path, "added_tokens_decoder", decoder, "an object of a token for each number")
  for number, token in decoder.items():
    if not number.isdecimal() or len(number) > 9:
      raise _wrong(path, "added_tokens_decoder", number, "numbers of tokens as keys")
    tokens.append(_token(path, "added_tokens_decoder", token, int(number)))
  if is_there(folder / "added_tokens.json"):
    for content, number in read_json(folder / "added_tokens.json").items():
      if type(number) is not int or not 0 <= number < 10**9:
        raise _wrong(folder / "added_tokens.json", content, number, "the number of the token")
      tokens.append(_token(folder / "added_tokens.json", content, content, number))
  for source, values in ((path, config), (folder / "special_tokens_map.json", special)):
    for key in ("additional_special_tokens", "extra_special_tokens"):
      extra = values.get(key) or []
      extra = list(extra.values()) if isinstance(extra, dict) else extra
      if not isinstance(extra, list):
        raise _wrong(source, key, extra, "a list of tokens")
      tokens += [_token(source, key, token, None, special=True) for token in extra]
  if len(tokens) > 4 * _LARGEST_ADDED:
    raise CheckpointError(f"{folder} adds {len(tokens)} tokens to the vocabulary, at most {_LARGEST_ADDED} are read")
  by_content: dict[str, AddedToken] = {}
  for token in tokens:
    first = by_content.setdefault(token.content, token)
    if first.id is None:
      by_content[token.content] = token
    elif token.id not in (None, first.id):
      raise CheckpointError(f"{token.path}: the token {shown(token.content)} has the number {token.id}, and {first.id} "
                            f"in {first.path.name}")
  return sorted(by_content.values(), key=lambda token: (token.id is None, token.id or 0))


def _listed(path: Path, listed: Any) -> Iterator[AddedToken]:
  if listed is not None and not isinstance(listed, list):
    raise _wrong(path, "added_tokens", listed, "a list of tokens")
  for token in listed or ():
    number = token.get("id") if isinstance(token, dict) else None
    if type(number) is not int or not 0 <= number < 10**9:
      raise _wrong(path, "added_tokens", token, "tokens with `id` and `content`")
    yield _token(path, "added_tokens", token, number)


def _token(path: Path, key: str, token: Any, number: int | None, special: bool = False) -> AddedToken:
  """Returns a token that a file gives as a text, or as an object with `content` and flags."""
  values = dict(token) if isinstance(token, dict) else dict(content=token)
  values |= dict(special=True) if special else {}
  content = values.get("content")
  if not isinstance(content, str) or not 0 < len(content) <= _LONGEST:
    raise _wrong(path, key, token, f"a token of 1 to {_LONGEST} characters")
  flags = {name: values[name] for name in _FLAGS if name in values}
  if not all(isinstance(value, bool) for value in flags.values()):
    raise _wrong(path, key, token, "true or false for single_word, lstrip, rstrip, normalized and special")
  # transformers' default: special tokens are matched in the text as it was typed.
  flags.setdefault("normalized", not flags.get("special", False))
  return AddedToken(content, path, number, tuple(sorted(flags.items())))


def add_tokens(backend: tokenizers.Tokenizer, tokens: list[AddedToken]) -> None:
  """Adds the tokens to a tokenizer; each has its number then.

  Raises:
    CheckpointError: a token's number is taken, or is not the next one.
  """
  for token in tokens:
    before, size = backend.token_to_id(token.content), backend.get_vocab_size()
    expected = size if before is None else before
    if token.id not in (None, expected):
      raise CheckpointError(f"{token.path}: the added token {shown(token.content)} has the number {token.id}, expected "
                            f"{expected}" + (", its number in the vocabulary" if before is not None else ""))
    if size >= LARGEST_VOCABULARY:
      raise CheckpointError(f"{token.path}: more than {LARGEST_VOCABULARY} tokens")
    flags = dict(token.flags)
    add = backend.add_special_tokens if flags.pop("special", False) else backend.add_tokens
    add([tokenizers.AddedToken(token.content, **flags)])


def _wrong(path: Path, key: str, value: Any, legal: str) -> CheckpointError:
  return CheckpointError(f"{path}: {key[:80]}={shown(value)} should be {legal}")


@contextlib.contextmanager
def library_errors(problem: str) -> Iterator[None]:
  """Raises CheckpointError("<problem>: <reason>") for any error of the `tokenizers` library within.

  The library raises bare Exceptions, and for some damaged files an exception of Rust that is no Exception.
  """
  try:
    yield
  except CheckpointError:
    raise
  except BaseException as error:
    # KeyboardInterrupt and SystemExit are no errors of the library.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    text = " ".join(f"{type(error).__name__}: {error}".split())
    raise CheckpointError(f"{problem}: {text if len(text) <= 300 else text[:296] + ' ...'}") from None
