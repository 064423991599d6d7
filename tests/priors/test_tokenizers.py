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


def as_one_file(folder, **changes):
  """Replaces vocab.json and merges.txt by the tokenizer.json that transformers 5 writes."""
  load_tokenizer(folder).backend.save(str(folder / "tokenizer.json"))
  content = json.loads((folder / "tokenizer.json").read_text())
  for key, value in changes.items():
    part, _, inner = key.partition("__")
    content[part] = content[part] | {inner: value} if inner else value
  (folder / "tokenizer.json").write_text(json.dumps(content))
  (folder / "vocab.json").unlink()
  (folder / "merges.txt").unlink()


TEXTS = ["a red cube", "", "A  RED\ncube!", "bed", "a cubered", "<|endoftext|> red"]


def test_one_file(folder):
  expected = load_tokenizer(folder)(TEXTS)
  as_one_file(folder)
  np.testing.assert_array_equal(load_tokenizer(folder)(TEXTS), expected)
  content = json.loads((folder / "tokenizer.json").read_text())
  content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]  # as older versions write it
  (folder / "tokenizer.json").write_text(json.dumps(content))
  np.testing.assert_array_equal(load_tokenizer(folder)(TEXTS), expected)


@pytest.mark.parametrize("changes, expected", [
  (dict(model=None), "tokenizer.json: model None is not supported; supported: 'BPE'"),
  (dict(model__type="WordPiece"), "model 'WordPiece' is not supported"),
  (dict(model__end_of_word_suffix=""), "model.end_of_word_suffix='' is not supported; supported: '</w>'"),
  (dict(model__byte_fallback=True), "model.byte_fallback=True is not supported"),
  (dict(model__vocab=[1]), r"model.vocab=\[1\] should map"),
  (dict(model__vocab={"a": 0, "b": True}), "no vocabulary: .* has 'b': True"),
  (dict(model__vocab={"": 0}), "has an empty token"),
  (dict(model__vocab={str(i): i for i in range(300_001)}), "has 300001 tokens, at most 300000 are read"),
  (dict(model__merges="a b"), "model.merges='a b' should be a list of pairs"),
  (dict(model__merges=["a b"] * 300_001), "has 300001 merges, at most 300000 are read"),
  (dict(model__merges=[["a"]]), r"model.merges has \['a'\], expected pairs"),
  (dict(model__merges=["q q</w>"]), "tokenizer.json doesn't fit tokenizer.json: .*qq</w>"),
  (dict(normalizer=None), r"normalizer \[\] is not supported; supported: \['NFC', 'Replace', 'Lowercase'\]"),
  (dict(pre_tokenizer=dict(type="Whitespace")), r"pre_tokenizer \['Whitespace'\] is not supported"),
  (dict(added_tokens={"a": 1}), "tokenizer.json: added_tokens={'a': 1} should be a list"),
  (dict(added_tokens=[dict(content="<x>")]), "added_tokens={'content': '<x>'} should be tokens with `id`"),
  (dict(added_tokens=[dict(content="<x>", id=5)]), "the added token '<x>' has the number 5, expected"),
  (dict(added_tokens=[dict(content="", id=300)]), "should be a token of 1 to 1000 characters")])
def test_wrong_files_of_all(folder, changes, expected):
  as_one_file(folder, **changes)
  with pytest.raises(CheckpointError, match=expected) as error:
    load_tokenizer(folder)
  assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("where", ["added_tokens.json", "added_tokens_decoder", "tokenizer.json", "special"])
def test_added_tokens_are_tokens_of_their_own(folder, where):
  """As textual inversion adds them, by each kind of file; a word of two vectors is two tokens."""
  count = len(json.loads((folder / "vocab.json").read_text()))
  config = json.loads((folder / "tokenizer_config.json").read_text())
  if where == "added_tokens.json":
    (folder / where).write_text(json.dumps({"<cat-toy>": count, "<cat-toy>_1": count + 1}))
  elif where == "added_tokens_decoder":
    config[where] = {str(count + i): dict(content=name, normalized=True, special=False)
                     for i, name in enumerate(("<cat-toy>", "<cat-toy>_1"))}
  elif where == "special":
    config["additional_special_tokens"] = ["<cat-toy>", dict(content="<cat-toy>_1")]
  else:
    as_one_file(folder)
    content = json.loads((folder / where).read_text())
    content["added_tokens"] += [dict(id=count + i, content=name, special=False, normalized=True, lstrip=False,
                                     rstrip=False, single_word=False)
                                for i, name in enumerate(("<cat-toy>", "<cat-toy>_1"))]
    (folder / where).write_text(json.dumps(content))
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  tokenizer = load_tokenizer(folder)
  assert tokenizer.backend.get_vocab_size() == count + 2
  row, = tokenizer(["a <cat-toy> <cat-toy>_1 cone"])
  assert row[2:4].tolist() == [count, count + 1] and row[1] == tokenizer(["a"])[0][1]
  (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": count + 1}))
  if where != "special":
    with pytest.raises(CheckpointError, match="the token '<cat-toy>' has the number|the added token '<cat-toy>'"):
      load_tokenizer(folder)
