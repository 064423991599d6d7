"""Text once: embeddings come from the cache when they can, and the encoder is read only when they can't."""
import dataclasses
import hashlib
import os
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors.loading import file_digest, text as text_lib

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
  with jax.default_matmul_precision("float32"):
    names.add(same._key(ids, None))
  config = copy / "text_encoder" / "config.json"
  config.write_text(config.read_text().replace("quick_gelu", "gelu"))
  names.add(same._key(ids, None))
  skipped = dataclasses.replace(encoder, model=dataclasses.replace(encoder.model, clip_skip=1))
  names.add(skipped._key(ids, None))
  assert len(names) == 8


def test_a_large_file_is_hashed_whole_and_once(tmp_path, monkeypatch):
  """A change of any byte in place counts, also with the old size and the old time of change."""
  monkeypatch.setattr(file_digest, "_SMALL", 10)
  hashed, whole = [], file_digest._hash
  monkeypatch.setattr(file_digest, "_hash", lambda path: (hashed.append(1), whole(path))[1])
  path, memory = tmp_path / "w.safetensors", tmp_path / "memory"
  path.write_bytes(bytes(100))
  os.utime(path, (1, 1))
  first = file_digest.file_digest(path, memory)
  assert not memory.exists() and len(hashed) == 1  # too new: its times could stay the same in a change
  monkeypatch.setattr(file_digest, "_SETTLED", -1.0)
  assert [file_digest.file_digest(path, memory) for _ in range(2)] == [first] * 2 and len(hashed) == 2
  before = path.stat()
  while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system may count in steps of milliseconds
    with open(path, "r+b") as file:
      file.seek(57)
      file.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert path.stat().st_mtime_ns == before.st_mtime_ns
  assert file_digest.file_digest(path, memory) == hashlib.sha256(path.read_bytes()).hexdigest() != first
  next((memory / "digests").iterdir()).write_text("damaged")
  assert file_digest.file_digest(path, memory) != first
  monkeypatch.setattr(file_digest, "write_atomically", lambda *args: (_ for _ in ()).throw(OSError("full")))
  assert file_digest.file_digest(path, tmp_path / "other") != first


def test_a_flipped_bit_in_the_cache_is_found(encoder, cache, reads):
  first = encoder(PROMPTS)["text"]
  path = next(cache.iterdir())
  data = bytearray(path.read_bytes())
  data[-5] ^= 1  # in the last number
  path.write_bytes(data)
  with pytest.warns(UserWarning, match="made again: their digest is not the one"):
    np.testing.assert_array_equal(encoder(PROMPTS)["text"], first)
  other = cache / f"{encoder._key(encoder.tokenizer(['a cube']), None)}.safetensors"
  shutil.copy(path, other)  # the entry of other prompts
  assert text_lib._read(path, {"text": (3, 8, 12)}) is not None
  with pytest.warns(UserWarning, match="digest"):
    assert text_lib._read(other, {"text": (3, 8, 12)}) is None


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
  for name, expected in (("XDG_CACHE_HOME", "home/x/sds_jax/text"), ("SDS_JAX_CACHE", "home/x/text")):
    monkeypatch.setenv(name, "~/x")
    assert text_lib.cache_folder() == tmp_path / expected
  # A user of a container whose number has no entry in the list of users.
  monkeypatch.setenv("SDS_JAX_CACHE", "~nobody-here/x")
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  monkeypatch.setattr(tempfile, "tempdir", None)
  assert text_lib.cache_folder() == tmp_path / "sds_jax" / "text"
