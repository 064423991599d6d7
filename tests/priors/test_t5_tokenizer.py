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
