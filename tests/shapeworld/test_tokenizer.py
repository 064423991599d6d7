"""The tokenizer files: a token per word, bytes for other text, and agreement with transformers."""
import json
import warnings

import pytest

from sds_jax.shapeworld import captions, tokenizer

UNKNOWN_WORDS = ["dog", "cubes", "reddish", "topsphere", "x", "42"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tokenizer.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_only_words_of_captions_are_single_tokens():
  vocabulary, rules = tokenizer.build_vocabulary()
  for word in captions.WORDS:
    assert tokenizer.apply_merges(word, rules) == [word + "</w>"]
    assert word + "</w>" in vocabulary
  for word in UNKNOWN_WORDS[:5]:
    pieces = tokenizer.apply_merges(word, rules)
    assert "".join(pieces) == word + "</w>" and all(piece in vocabulary for piece in pieces)
    assert word == "x" or len(pieces) > 1


def test_vocabulary_numbers_its_tokens_once():
  vocabulary, rules = tokenizer.build_vocabulary()
  assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
  assert len(set(tokenizer.byte_alphabet())) == 256 and set(tokenizer.byte_alphabet()) <= set(vocabulary)
  assert all(left + right in vocabulary for left, right in rules)
  assert vocabulary["<|endoftext|>"] == len(vocabulary) - 1  # CLIP's text pooling takes the largest id


def test_special_ids_are_those_of_the_files(folder):
  vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
  end = vocabulary["<|endoftext|>"]
  assert tokenizer.special_ids(folder) == dict(
    bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=end, pad_token_id=end)


def test_transformers_reads_the_files(folder):
  transformers = pytest.importorskip("transformers")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # transformers' own deprecations
    clip = transformers.CLIPTokenizer.from_pretrained(folder)
  vocabulary, rules = tokenizer.build_vocabulary()
  assert clip.model_max_length == 20 and clip.pad_token == "<|endoftext|>"
  text = "An orange cone on top of a blue cylinder, overhead view"
  words = [word + "</w>" for word in text.lower().replace(",", " ,").split()]
  ids = clip(text, padding="max_length", truncation=True)["input_ids"]
  expected = [vocabulary["<|startoftext|>"], *(vocabulary[word] for word in words), vocabulary["<|endoftext|>"]]
  assert ids == expected + [vocabulary["<|endoftext|>"]] * (20 - len(expected))
  for word in UNKNOWN_WORDS[:5]:
    assert clip.convert_ids_to_tokens(clip(word)["input_ids"])[1:-1] == tokenizer.apply_merges(word, rules)


def test_byte_alphabet_is_that_of_transformers():
  module = pytest.importorskip("transformers.convert_slow_tokenizer")
  assert set(tokenizer.byte_alphabet()) == set(module.bytes_to_unicode().values())
