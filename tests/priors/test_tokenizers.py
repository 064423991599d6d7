"""The tokenizer on a vocabulary small enough to do by hand; against transformers in parity/."""
import json

import numpy as np
import pytest

from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.tokenizers import load_tokenizer


@pytest.fixture
def folder(tmp_path, write_tokenizer):
  return write_tokenizer(tmp_path / "tokenizer")


def ids(folder, *tokens):
  vocabulary = json.loads((folder / "vocab.json").read_text())
  return [vocabulary[token] for token in tokens]


def test_ids(folder):
  start, end = "<|startoftext|>", "<|endoftext|>"
  got = load_tokenizer(folder)(["a red cube", "", "A  RED\ncube!", "bed"])
  assert got.dtype == np.int32
  np.testing.assert_array_equal(got, [
    ids(folder, start, "a</w>", "red</w>", "cube</w>", *[end] * 4),
    ids(folder, start, *[end] * 7),
    ids(folder, start, "a</w>", "red</w>", "cube</w>", "!</w>", *[end] * 3),
    ids(folder, start, "b", "e", "d</w>", *[end] * 4)])


def test_unknown_characters_are_the_unknown_token(folder):
  np.testing.assert_array_equal(load_tokenizer(folder)(["é"])[0, :3],
                                ids(folder, "<|startoftext|>", *["<|endoftext|>"] * 2))


def test_padding_token(tmp_path, write_tokenizer):
  folder = write_tokenizer(tmp_path / "t", pad_token={"content": "!", "lstrip": False})
  np.testing.assert_array_equal(load_tokenizer(folder)(["red"])[0],
                                ids(folder, "<|startoftext|>", "red</w>", "<|endoftext|>", *["!"] * 5))


def test_truncation_warns_with_what_is_lost(folder):
  tokenizer = load_tokenizer(folder)
  with pytest.warns(UserWarning, match="sees the first 6 tokens only; cut off from 'a red .*': 'blue cone'"):
    row, = tokenizer(["a red cube a red cube blue cone"])
  np.testing.assert_array_equal(row, ids(folder, "<|startoftext|>", *["a</w>", "red</w>", "cube</w>"] * 2,
                                         "<|endoftext|>"))
  tokenizer(["a red cube a red cube"])  # fits exactly, no warning


def test_length_defaults_to_77(folder):
  (folder / "tokenizer_config.json").unlink()
  assert load_tokenizer(folder)(["red"]).shape == (1, 77)
  (folder / "tokenizer_config.json").write_text(json.dumps(dict(model_max_length=10**30)))
  assert load_tokenizer(folder)(["red"]).shape == (1, 77)
  (folder / "tokenizer_config.json").write_text(json.dumps(dict(model_max_length=None)))
  assert load_tokenizer(folder)(["red"]).shape == (1, 77)


def test_a_single_string_is_refused(folder):
  with pytest.raises(TypeError, match="a list of texts is expected, not the one text 'red'"):
    load_tokenizer(folder)("red")


@pytest.mark.parametrize("name, content, expected", [
  ("vocab.json", None, r"vocab.json does not exist"),
  ("merges.txt", None, r"merges.txt does not exist"),
  ("vocab.json", "<html>", r"vocab.json is an HTML page"),
  ("merges.txt", "version https://git-lfs.github.com/spec/v1\n", r"merges.txt is a Git LFS pointer"),
  ("vocab.json", '{"a": 0, "b": 2}', r"the numbers of its 2 tokens are not 0 to 1"),
  ("vocab.json", '{"a": "b"}', r"vocab.json is no vocabulary"),
  ("vocab.json", '{"a": 0, "b": 1}', r"vocab.json lacks the bos_token '<\|startoftext\|>'"),
  ("merges.txt", "#version: 0.2\na b c\n", r"merges.txt, line 2: expected two tokens, found 'a b c'"),
  ("merges.txt", "q q</w>\n", r"merges.txt doesn't fit vocab.json: .*qq</w>"),
  ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', r"tokenizer_class='T5Tokenizer' is not supported"),
  ("tokenizer_config.json", '{"do_lower_case": false}', r"do_lower_case=False is not supported; supported: True"),
])
def test_wrong_folders(folder, name, content, expected):
  (folder / name).unlink()
  if content is not None:
    (folder / name).write_text(content)
  with pytest.raises(CheckpointError, match=expected):
    load_tokenizer(folder)
