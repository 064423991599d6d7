"""The tokenizer of ShapeWorld's prior: CLIP's byte-level BPE (Sennrich et al. 2016; CLIP, 2021) with a tiny vocabulary.

Each word of a caption is one token ("red</w>"); anything else falls back to single bytes, as in CLIP. The files are
those of a `transformers.CLIPTokenizer`, so that the shipped prior takes the same path as Stable Diffusion.
"""
from __future__ import annotations

import json
import os
import pathlib

from sds_jax.shapeworld import captions

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 20
"""Length that prompts are padded to."""
END_OF_WORD = "</w>"


def byte_alphabet() -> list[str]:
  """The 256 printable characters that stand for bytes in GPT-2's and CLIP's vocabularies, in their order.

  Printable Latin-1 characters stand for themselves; the other bytes, in order, for the characters from U+0100 on.
  """
  printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
  hidden = [byte for byte in range(256) if byte not in printable]
  return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]


def merges(words: list[str]) -> list[tuple[str, str]]:
  """Merge rules, most urgent first, under which BPE makes one token of each word.

  A word gets rules only for the pieces that the rules so far leave of it. New rules come last, so they never change
  what became of an earlier word: as long as that is not one token, an earlier rule fits and goes first.
  """
  rules: list[tuple[str, str]] = []
  for word in words:
    pieces = apply_merges(word, rules)
    while len(pieces) > 1:
      rules.append((pieces[0], pieces[1]))
      pieces = apply_merges(word, rules)
  return rules


def apply_merges(word: str, rules: list[tuple[str, str]]) -> list[str]:
  """The pieces that BPE makes of a word: the most urgent rule that fits is applied everywhere, again and again."""
  pieces = [*word[:-1], word[-1] + END_OF_WORD]
  rank = {rule: i for i, rule in enumerate(rules)}
  while len(pieces) > 1:
    best = min(zip(pieces, pieces[1:]), key=lambda pair: rank.get(pair, len(rank)))
    if best not in rank:
      break
    joined, i = [], 0
    while i < len(pieces):
      fits = tuple(pieces[i:i + 2]) == best
      joined.append("".join(best) if fits else pieces[i])
      i += 2 if fits else 1
    pieces = joined
  return pieces


def build_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
  """(token -> id, merge rules): bytes, bytes that end a word, merged pieces, and the two special tokens last."""
  rules = merges(sorted(captions.WORDS))
  alphabet = byte_alphabet()
  pieces = [*alphabet, *(symbol + END_OF_WORD for symbol in alphabet), *(left + right for left, right in rules)]
  tokens = [*dict.fromkeys(pieces), START, END]
  return {token: i for i, token in enumerate(tokens)}, rules


def write_tokenizer(folder: str | os.PathLike) -> pathlib.Path:
  """Writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json; returns the folder."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  vocabulary, rules = build_vocabulary()
  special = dict(bos_token=START, eos_token=END, unk_token=END, pad_token=END)
  config = dict(tokenizer_class="CLIPTokenizer", add_prefix_space=False, do_lower_case=True, errors="replace",
                model_max_length=MAX_TOKENS, **special)
  lines = ["#version: 0.2", *(f"{left} {right}" for left, right in rules)]
  (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
  (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
  (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
  (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
  return folder


def special_ids(folder: str | os.PathLike) -> dict[str, int]:
  """bos_token_id, eos_token_id and pad_token_id of the tokenizer in a folder, for a CLIPTextModel's config."""
  folder = pathlib.Path(folder)
  vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
  names = json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8"))
  return {f"{role}_token_id": vocabulary[names[f"{role}_token"]] for role in ("bos", "eos", "pad")}
