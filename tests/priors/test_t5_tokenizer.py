"""T5's tokenizer on a vocabulary small enough to do by hand; against transformers in parity/."""
import json
import struct

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.t5_tokenizer import load_t5_tokenizer

PIECES = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "\u2581red", "\u2581cube", "s", "c", "u", "b", "e", "A"]


def write(folder, pieces=PIECES, **config):
  """A folder as transformers writes it: unigrams, an end token by template, padding and truncation in the file."""
  backend = tokenizers.Tokenizer(models.Unigram([(piece, -1.0 - i / 10) for i, piece in enumerate(pieces)], unk_id=2))
  backend.normalizer = normalizers.NFKC()
  backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
  backend.add_special_tokens([piece for piece in pieces[:3] if piece.startswith("<")])
  backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
  backend.enable_padding(length=99)
  backend.enable_truncation(3)
  folder.mkdir()
  backend.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="T5Tokenizer", **config)))
  return folder


@pytest.fixture
def folder(tmp_path):
  return write(tmp_path / "tokenizer")


def test_ids_and_mask(folder):
  ids, mask = load_t5_tokenizer(folder, length=7)(["a red  cube", "", "  A RED\nCUBES ", "red \u732b"])
  assert (ids.dtype, mask.dtype) == (np.int32, bool)
  np.testing.assert_array_equal(ids, [
    [4, 5, 6, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [4, 5, 6, 7, 1, 0, 0], [5, 3, 2, 1, 0, 0, 0]])
  np.testing.assert_array_equal(mask, [[True] * n + [False] * (7 - n) for n in (4, 1, 5, 4)])


def test_case_is_kept_on_demand(folder):
  tokenizer = load_t5_tokenizer(folder, length=5, lower=False)
  np.testing.assert_array_equal(tokenizer([" A red"])[0], [[3, 12, 5, 1, 0]])


def test_length_is_that_of_if(folder):
  assert load_t5_tokenizer(folder)(["red"])[0].shape == (1, 77)


def test_truncation_warns_with_what_is_lost(folder):
  tokenizer = load_t5_tokenizer(folder, length=4)
  with pytest.warns(UserWarning, match="sees the first 3 tokens only; cut off from 'a red cubes': 's'"):
    ids, mask = tokenizer(["a red cubes"])
  np.testing.assert_array_equal(ids, [[4, 5, 6, 1]])
  assert mask.all()
  tokenizer(["a red cube"])  # fits exactly, no warning


def test_special_tokens_of_the_config(tmp_path):
  folder = write(tmp_path / "t", ["<end>", "</s>", *PIECES[2:]], pad_token={"content": "</s>"}, eos_token="<end>")
  np.testing.assert_array_equal(load_t5_tokenizer(folder, 4)(["red"])[0], [[5, 0, 1, 1]])


def test_a_single_string_is_refused(folder):
  with pytest.raises(TypeError, match="a list of texts is expected, not the one text 'red'"):
    load_t5_tokenizer(folder)("red")


def test_wrong_folders(folder, tmp_path):
  def message():
    with pytest.raises(CheckpointError) as error:
      load_t5_tokenizer(folder)
    return str(error.value)

  path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
  config.write_text('{"tokenizer_class": "LlamaTokenizer"}')
  assert "tokenizer_class='LlamaTokenizer' is not supported; supported: 'T5Tokenizer', 'T5Token" in message()
  config.unlink()
  assert load_t5_tokenizer(folder).eos == 1
  tokenizers.Tokenizer(models.WordLevel({"red": 0}, unk_token="red")).save(str(path))
  assert message() == f"{path}: model WordLevel is not supported; supported: Unigram"
  tokenizers.Tokenizer(models.Unigram([("red", 0.), ("<pad>", 0.)], unk_id=0)).save(str(path))
  assert message() == f"{path} lacks the eos_token '</s>'"
  path.write_text("{}")
  assert message().startswith(f"{path} is damaged or no tokenizer: ")
  path.write_text("<html>")
  assert message().startswith(f"{path} is an HTML page")
  path.unlink()
  assert message() == f"{folder} has no tokenizer: expected tokenizer.json or spiece.model"
  config.write_text('{"extra_ids": -1}')
  (folder / "spiece.model").write_bytes(b"x")
  assert message() == f"{config}: extra_ids=-1 should be a whole number from 0 to 10,000"


def varint(value):
  return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number, value):
  """A field of a protocol buffer: a number, a float, or bytes."""
  if isinstance(value, float):
    return varint(8 * number + 5) + struct.pack("<f", value)
  return varint(8 * number) + varint(value) if isinstance(value, int) else (
    varint(8 * number + 2) + varint(len(value)) + value)


def sentencepiece_model(pieces=PIECES, trainer=(), normalizer=()):
  """A file as SentencePiece writes it: control pieces are of type 3, the unknown one of type 2."""
  types = {"<pad>": 3, "</s>": 3, "<unk>": 2}
  data = b"".join(field(1, field(1, piece.encode()) + field(2, -1.0 - i / 10) + (
    field(3, types[piece]) if piece in types else b"")) for i, piece in enumerate(pieces))
  return data + b"".join(field(number, b"".join(field(*pair) for pair in pairs))
                         for number, pairs in ((2, trainer), (3, normalizer), (5, [(1, b"denormalizer")])))


def test_spiece_model(folder):
  """DeepFloyd's folders have no tokenizer.json; against transformers and SentencePiece itself in parity/."""
  texts = ["a red  cube", "", "  A RED\nCUBES ", "red \u732b\u732b", "red</s> cube<pad>"]
  expected = load_t5_tokenizer(folder)(texts)
  (folder / "tokenizer.json").unlink()
  (folder / "spiece.model").write_bytes(sentencepiece_model(trainer=[(1, b"corpus"), (3, 1), (4, 32000)]))
  got = load_t5_tokenizer(folder)
  np.testing.assert_array_equal(got(texts), expected)
  assert got.backend.get_vocab_size() == len(PIECES) + 100
  assert got.backend.token_to_id("<extra_id_99>") == len(PIECES)


@pytest.mark.parametrize("data, expected", [
  (sentencepiece_model(trainer=[(3, 2)]), "model_type=2 is not supported; supported: 1"),
  (sentencepiece_model(trainer=[(35, 1)]), "byte_fallback=1 is not supported; supported: 0"),
  (sentencepiece_model(normalizer=[(3, 0)]), "add_dummy_prefix=0 is not supported; supported: 1"),
  (sentencepiece_model(["<unk>", "a"]), "lacks the eos_token '</s>'"),
  (sentencepiece_model()[:-8], "is damaged or no SentencePiece model: ValueError: it ends within a field"),
  (sentencepiece_model(["a"]), "is damaged or no SentencePiece model: StopIteration"),
  (b"\x0b", "is damaged or no SentencePiece model: ValueError: wire type 3 at byte 1"),
  (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file itself")])
def test_wrong_spiece_models(tmp_path, data, expected):
  (tmp_path / "spiece.model").write_bytes(data)
  with pytest.raises(CheckpointError) as error:
    load_t5_tokenizer(tmp_path)
  assert str(error.value).startswith(f"{tmp_path / 'spiece.model'}") and expected in str(error.value)


def charsmap(units, texts):
  return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts


def identity_table():
  """The table of a real model's form that replaces "Q" by "q": a root, one child by a letter, and its value."""
  units = [0] * 512
  units[0] = 256 << 10  # children of the root at 256
  leaf = 256 ^ ord("Q")
  units[leaf] = ord("Q") | 1 << 8 | 1 << 10
  units[leaf ^ 1] = 1 << 31  # text 0
  return units


def json_with(path, **changes):
  content = json.loads(path.read_text())
  for key, value in changes.items():
    part, _, inner = key.partition("__")
    content[part] = (content[part] or {}) | {inner: value} if inner else value
  path.write_text(json.dumps(content))


NAN = struct.pack("<f", float("nan"))
HOSTILE = {
  "a number without end": (b"\x08" + b"\xff" * 10**6 + b"\x01", "a number of more than ten bytes"),
  "a million pieces": (b"".join(field(1, field(1, b"%d" % i)) for i in range(300_100)), "too many pieces"),
  "4 million fields": (b"\x0a\x00" * 2**22, "too many pieces"),
  "an empty piece": (sentencepiece_model([*PIECES, ""]), "piece 13, '', has 0 characters"),
  "a piece twice": (sentencepiece_model([*PIECES, "s"]), "piece 13, 's', stands there twice"),
  "a score that is no number": (sentencepiece_model() + field(1, field(1, b"x") + b"\x15" + NAN), "has the score nan"),
  "an infinite score": (sentencepiece_model() + field(1, field(1, b"x") + field(2, float("-inf"))), "the score -inf"),
  "a table cut off": (sentencepiece_model(normalizer=[(2, b"abc")]), "its table of characters is cut off"),
  "a table of nothing": (sentencepiece_model(normalizer=[(2, charsmap([], b""))]), "is cut off"),
  "a walk outside": (sentencepiece_model(normalizer=[(2, charsmap([1 << 20] * 256, b"q\0"))]),
                     "points outside of itself"),
  "a text outside": (sentencepiece_model(normalizer=[(2, charsmap(
    [256 << 10] + identity_table()[1:256 ^ ord("P")] + [1 << 31 | 99] + identity_table()[257 ^ ord("P"):], b"q\0"))]),
    "points outside of its texts"),
  "texts that are none": (sentencepiece_model(normalizer=[(2, charsmap(identity_table(), b"\xff\0"))]), "decode"),
  "a huge table": (sentencepiece_model(normalizer=[(2, bytes(2**21 + 1))]), "at most 2097152 are read")}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("data, words", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_spiece_models(tmp_path, data, words, capfd):
  (tmp_path / "spiece.model").write_bytes(data)
  with pytest.raises(CheckpointError, match=words) as error:
    load_t5_tokenizer(tmp_path)
  assert str(tmp_path / "spiece.model") in str(error.value) and len(str(error.value)) < 500
  assert "panicked" not in capfd.readouterr().err


def test_a_table_of_characters_is_read(tmp_path):
  data = sentencepiece_model(normalizer=[(2, charsmap(identity_table(), b"s\0"))])
  (tmp_path / "spiece.model").write_bytes(data)
  np.testing.assert_array_equal(load_t5_tokenizer(tmp_path, 4, lower=False)(["Q", "s"])[0], [[3, 7, 1, 0]] * 2)


@pytest.mark.parametrize("changes, words", [
  (dict(model__vocab=3), "model.vocab=3 should be a list of pieces"),
  (dict(model__vocab=[["a", "b"]]), "model.vocab=.* should be a list of pieces"),
  (dict(model__vocab=[["", 0.0]] * 3), "piece 0, '', has 0 characters"),
  (dict(model__unk_id=10**9), "model.unk_id=1000000000 should be the number of a piece"),
  (dict(model__byte_fallback=True), "model.byte_fallback=True is not supported"),
  (dict(normalizer=dict(type="Precompiled", precompiled_charsmap="AAAA")), "its table of characters is cut off"),
  (dict(normalizer=dict(type="Precompiled", precompiled_charsmap=3)), "precompiled_charsmap=3 should be a text"),
  (dict(normalizer=dict(type="Replace", pattern=dict(Regex="(a+)+$"), content="")), "Replace with the pattern"),
  (dict(normalizer=dict(type="Replace", pattern=dict(String=""), content="x")), "Replace with the pattern"),
  (dict(normalizer=dict(type="Sequence", normalizers=[dict(type="Evil")])), "normalizer 'Evil' is not supported"),
  (dict(pre_tokenizer=dict(type="Split", pattern=dict(Regex="(a+)+"))), "pre_tokenizer 'Split' is not supported"),
  (dict(added_tokens=[dict(id=99, content="<x>")]), "the added token '<x>' has the number 99, expected 13")])
def test_wrong_values_of_tokenizer_json(folder, changes, words):
  json_with(folder / "tokenizer.json", **changes)
  with pytest.raises(CheckpointError, match=words) as error:
    load_t5_tokenizer(folder)
  assert "tokenizer.json" in str(error.value) and "\n" not in str(error.value)


def test_added_tokens(folder):
  (folder / "added_tokens.json").write_text('{"<toy>": 13}')
  np.testing.assert_array_equal(load_t5_tokenizer(folder, 4)(["red <toy>"])[0], [[5, 13, 1, 0]])
