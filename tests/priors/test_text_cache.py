"""Text once: embeddings come from the cache when they can, and the encoder is read only when they can't."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors.loading import text as text_lib

PROMPTS = ["a red cube", "a blue cone", ""]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SDS_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "text"


@pytest.fixture
def reads(monkeypatch):
  """Grows by one whenever the encoder's parameters are read."""
  counted, read = [], text_lib.load_on_device
  monkeypatch.setattr(text_lib, "load_on_device", lambda *args: (counted.append(1), read(*args))[1])
  return counted


@pytest.fixture(scope="module")
def encoder(prior_folder):
  return text_lib.open_clip_text(prior_folder, jnp.float32)


def test_once(encoder, clip, cache, reads, quick_jit):
  first = encoder(PROMPTS)["text"]
  assert first.dtype == jnp.float32 and len(reads) == 1 and len(list(cache.iterdir())) == 1
  expected = quick_jit(clip[1].apply, {"params": clip[2]}, jnp.asarray(encoder.tokenizer(PROMPTS)))
  np.testing.assert_allclose(first, expected, atol=1e-5)
  again = encoder(PROMPTS)["text"]
  assert isinstance(again, jax.Array) and len(reads) == 1
  np.testing.assert_array_equal(again, first)
  encoder(PROMPTS[:2])
  assert len(reads) == 2 and len(list(cache.iterdir())) == 2


def test_names_stand_for_all_that_matters(encoder, prior_folder, tmp_path):
  ids = encoder.tokenizer(PROMPTS)
  names = {encoder._key(ids, None), encoder._key(ids, np.ones(ids.shape, bool)), encoder._key(ids[::-1], None)}
  names.add(text_lib.open_clip_text(prior_folder, jnp.bfloat16)._key(ids, None))
  copy = tmp_path / "copy"
  shutil.copytree(prior_folder, copy)
  same = text_lib.open_clip_text(copy, jnp.float32)
  assert same._key(ids, None) == encoder._key(ids, None)
  weights = copy / "text_encoder" / "model.safetensors"
  tensors = load_file(weights)
  next(iter(tensors.values()))[0] += 1
  save_file(tensors, weights)
  names.add(same._key(ids, None))
  config = copy / "text_encoder" / "config.json"
  config.write_text(config.read_text().replace("quick_gelu", "gelu"))
  names.add(same._key(ids, None))
  assert len(names) == 6


def test_large_files_are_known_by_pieces(tmp_path, monkeypatch):
  monkeypatch.setattr(text_lib, "_PIECES", 4)
  monkeypatch.setattr(text_lib, "_PIECE_BYTES", 10)
  path = tmp_path / "w.safetensors"
  def identity(size, changed=None):
    data = bytearray(size)
    if changed is not None:
      data[changed] = 1
    path.write_bytes(data)
    return text_lib._identity(path)

  assert identity(40) != identity(40, 17)  # small: every byte counts
  plain = identity(100)  # pieces begin at 0, 30, 60, 90
  assert all(identity(100, i) != plain for i in (0, 9, 30, 65, 99)) and identity(100, 20) == plain
  assert identity(101) != plain


@pytest.mark.parametrize("damage, words", [
  (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged and made again"),
  (lambda path: path.write_bytes(b""), "damaged and made again"),
  (lambda path: save_file({"other": np.zeros(3, np.float32)}, path), "'text'"),
  (lambda path: save_file({"text": np.zeros((3, 8, 11), np.float32)}, path),
   r"float32 \[3, 8, 11\], not float32 \[3, 8, 12\]")])
def test_a_damaged_file_is_made_again(encoder, cache, reads, damage, words):
  first = encoder(PROMPTS)["text"]
  damage(next(cache.iterdir()))
  with pytest.warns(UserWarning, match=words):
    again = encoder(PROMPTS)["text"]
  np.testing.assert_array_equal(again, first)
  assert len(reads) == 2
  encoder(PROMPTS)["text"]
  assert len(reads) == 2 and len(list(cache.iterdir())) == 1


def test_a_cache_that_can_t_be_written(encoder, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("SDS_JAX_CACHE", str(tmp_path / "file"))
  with pytest.warns(UserWarning, match="can't be kept for the next run in .*file/text"):
    assert encoder(["a cube"])["text"].shape == (1, 8, 12)


def test_where_it_is(monkeypatch, tmp_path):
  monkeypatch.delenv("SDS_JAX_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert text_lib.cache_folder() == tmp_path / "sds_jax" / "text"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert text_lib.cache_folder() == tmp_path / "home" / ".cache" / "sds_jax" / "text"
