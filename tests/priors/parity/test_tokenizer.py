"""Ids against transformers.CLIPTokenizer, with the tiny vocabulary and, where it lies at hand, with CLIP's own.

For the latter, SDS_JAX_CLIP_TOKENIZER names a folder with vocab.json and merges.txt of openai/clip-vit-large-patch14.
"""
import json
import os
from pathlib import Path
import shutil
import warnings

import numpy as np
import pytest

from sds_jax.priors.loading.tokenizers import load_tokenizer

TEXTS = [
  "", "a red cube", "A Red CUBE!!", "  two\t\nspaces ", "bed", "a DSLR photo of a squirrel, 4k", "don't we'll it's",
  "caf\u00e9 cafe\u0301 na\u00efve", "\u732b\u306e\u5199\u771f", "emoji \U0001f600 here", "3.14 and 100%", "a_b-c",
  "<|endoftext|> in the text", "<|startoftext|>a", "\u0130stanbul stra\u00dfe", "\u2028 \u00a0 x", "zero\u200bwidth",
  "'S 'd"]


def compare(folder, transformers, length):
  theirs = transformers.CLIPTokenizer.from_pretrained(folder)
  assert len(theirs.get_vocab()) > 100
  ours = load_tokenizer(folder)
  texts = [text for text in TEXTS if len(theirs(text)["input_ids"]) <= length]
  assert len(texts) >= 8
  expected = theirs(texts, padding="max_length", max_length=length, truncation=True)["input_ids"]
  np.testing.assert_array_equal(ours(texts), expected)
  long = "a red cube " * 40
  with pytest.warns(UserWarning, match="tokens only; cut off"):
    np.testing.assert_array_equal(
      ours([long]), theirs([long], padding="max_length", max_length=length, truncation=True)["input_ids"])


def test_tiny_vocabulary(transformers, tmp_path, write_tokenizer):
  compare(write_tokenizer(tmp_path / "tokenizer"), transformers, 8)
  compare(write_tokenizer(tmp_path / "padded", pad_token="!"), transformers, 8)


@pytest.mark.parametrize("config, padding", [({}, "!"), (dict(added_tokens_decoder={}), "<|endoftext|>")])
def test_which_file_has_the_last_word(transformers, tmp_path, write_tokenizer, config, padding):
  folder = write_tokenizer(tmp_path / "tokenizer", pad_token="<|endoftext|>", **config)
  (folder / "special_tokens_map.json").write_text(json.dumps(dict(pad_token="!", eos_token=dict(
    content="<|endoftext|>", lstrip=False, normalized=True, rstrip=False, single_word=False))))
  tokenizer = load_tokenizer(folder)
  assert tokenizer.backend.id_to_token(tokenizer.pad) == padding
  compare(folder, transformers, 8)


@pytest.fixture
def clip_vocabulary():
  folder = os.environ.get("SDS_JAX_CLIP_TOKENIZER", "")
  if not (Path(folder) / "vocab.json").is_file() or not folder:
    pytest.skip("CLIP's vocabulary is not here: set SDS_JAX_CLIP_TOKENIZER to a folder with its vocab.json, merges.txt")
  return Path(folder)


def test_clip_vocabulary(transformers, clip_vocabulary):
  compare(clip_vocabulary, transformers, 77)


def test_clip_vocabulary_on_random_strings(transformers, clip_vocabulary):
  """1,000 of them: words, and characters out of all scripts, with blanks and punctuation between."""
  rng = np.random.default_rng(0)
  scripts = [range(32, 127), range(0xa0, 0x250), range(0x300, 0x370), range(0x370, 0x530), range(0x5d0, 0x6e0),
             range(0x900, 0x980), range(0x1e00, 0x2070), range(0x3040, 0x3100), range(0x4e00, 0x9fa0),
             range(0xac00, 0xd7a0), range(0xfb00, 0xfb07), range(0xff00, 0xff60), range(0x1f300, 0x1f650)]
  words = [*"A DSLR photo of squirrel's kitten, it'll 3.14 100% zebra_crossing UPPER don't".split(), "\t", "\n", "  "]
  texts = [" ".join(rng.choice(words, n)) for n in rng.integers(0, 12, 300)] + [
    "".join(chr(rng.choice(scripts[i])) for i in rng.integers(0, len(scripts) if wild else 3, n))
    for n, wild in zip(rng.integers(1, 40, 700), rng.random(700) < 0.5)]
  theirs, ours = transformers.CLIPTokenizer.from_pretrained(clip_vocabulary), load_tokenizer(clip_vocabulary)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some are too long
    got = ours(texts)
  expected = np.asarray(theirs(texts, padding="max_length", max_length=77, truncation=True)["input_ids"])
  wrong = [text for text, row, other in zip(texts, got, expected) if (row != other).any()]
  assert not wrong, [ascii(text) for text in wrong[:5]]
  assert (expected[:, -2] != 49407).any() and len(set(expected.ravel())) > 500  # some were cut; not all is unknown


def test_padding_of_stable_diffusion_2(transformers, clip_vocabulary, tmp_path):
  """Its folders pad with "!", which is id 0, and say so in special_tokens_map.json alone."""
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(clip_vocabulary / name, tmp_path)
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(
    tokenizer_class="CLIPTokenizer", pad_token="<|endoftext|>", model_max_length=77)))
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(dict(pad_token="!")))
  assert load_tokenizer(tmp_path)(["a cat"]).tolist() == [[49406, 320, 2368, 49407] + [0] * 73]
  compare(tmp_path, transformers, 77)
