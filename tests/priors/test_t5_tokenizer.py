"""T5's tokenizer on a vocabulary small enough to do by hand; against transformers in parity/."""
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from sds_jax.priors.files import CheckpointError
from sds_jax.priors.t5_tokenizer import load_t5_tokenizer

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
  assert message() == f"{path} does not exist"
  (folder / "spiece.model").write_bytes(b"x")
  assert f"{path} does not exist; spiece.model, which does, is not read. Make" in message()
