"""The tokenizer of the ShapeWorld prior: the byte-level BPE of CLIP with a tiny vocabulary.

Each word of a caption is a single token ("red</w>"); other text falls back to single bytes, as in CLIP (BPE: Sennrich
et al. 2016; CLIP: 2021). The files have the format of `transformers.CLIPTokenizer`, so the shipped prior and Stable
Diffusion share the same code.
"""
from __future__ import annotations

import json
import os
import pathlib

from sds_jax.shapeworld import captions

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 20
"""Length of a padded prompt, start and end tokens included."""
END_OF_WORD = "</w>"


def byte_alphabet() -> list[str]:
  """Returns the 256 characters for bytes in CLIP vocabularies.

  A printable Latin-1 character stands for its own byte. The other bytes, in order, get the characters from U+0100 on,
  as in GPT-2.
  """
  printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
  hidden = [byte for byte in range(256) if byte not in printable]
  return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]


def make_merge_rules(words: list[str]) -> list[tuple[str, str]]:
  """Builds BPE merge rules with a single token per word.

  The rules are in order of priority, highest first.
  """
  # Each word adds rules only for the pieces left by earlier rules. New rules have the lowest priority, so an earlier
  # word still merges by its own rules: until the word is a single token, some earlier rule fits.
  rules: list[tuple[str, str]] = []
  for word in words:
    pieces = apply_merges(word, rules)
    while len(pieces) > 1:
      rules.append((pieces[0], pieces[1]))
      pieces = apply_merges(word, rules)
  return rules


def apply_merges(word: str, rules: list[tuple[str, str]]) -> list[str]:
  """Splits a word into BPE pieces.

  Applies the best matching rule everywhere, until no rule matches.
  """
  pieces = [*word[:-1], word[-1] + END_OF_WORD]
  rank = {rule: i for i, rule in enumerate(rules)}
  while len(pieces) > 1:
    best = min(zip(pieces, pieces[1:]), key=lambda pair: rank.get(pair, len(rank)))
    if best not in rank:
      break
    # All occurrences of the best pair merge in a single pass, left to right, as in CLIP.
    joined, i = [], 0
    while i < len(pieces):
      fits = tuple(pieces[i:i + 2]) == best
      joined.append("".join(best) if fits else pieces[i])
      i += 2 if fits else 1
    pieces = joined
  return pieces


def build_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
  """Builds the vocabulary and the merge rules.

  Returns:
    token -> id (bytes, bytes at the end of a word, merged pieces, the two special tokens), and the merge rules.
  """
  rules = make_merge_rules(sorted(captions.WORDS))
  alphabet = byte_alphabet()
  pieces = [*alphabet, *(symbol + END_OF_WORD for symbol in alphabet), *(left + right for left, right in rules)]
  # END comes last: the text pooling of CLIP takes the position of the largest id.
  tokens = [*dict.fromkeys(pieces), START, END]
  return {token: i for i, token in enumerate(tokens)}, rules


def write_tokenizer(folder: str | os.PathLike) -> pathlib.Path:
  """Writes the tokenizer files and returns the folder.

  The files are vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  vocabulary, rules = build_vocabulary()
  special = dict(bos_token=START, eos_token=END, unk_token=END, pad_token=END)
  config = dict(tokenizer_class="CLIPTokenizer", add_prefix_space=False, do_lower_case=True, errors="replace",
                model_max_length=MAX_TOKENS, **special)
  # `CLIPTokenizer` skips the first line of merges.txt.
  lines = ["#version: 0.2", *(f"{left} {right}" for left, right in rules)]
  (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
  (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
  (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
  (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
  return folder


def special_ids(folder: str | os.PathLike) -> dict[str, int]:
  """Reads the ids of the special tokens.

  The ids are bos_token_id, eos_token_id and pad_token_id, for the config of a CLIPTextModel.

  Args:
    folder: of the tokenizer.
  """
  folder = pathlib.Path(folder)
  vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
  names = json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8"))
  return {f"{role}_token_id": vocabulary[names[f"{role}_token"]] for role in ("bos", "eos", "pad")}
