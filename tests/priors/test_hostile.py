"""Folders that somebody made to do harm, or that a disk has: each ends in one error that names the file, none hangs."""
import ast
import json
import os
import pathlib
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sds_jax
from sds_jax.priors import families, prior, sources
from sds_jax.priors.base import Options
from sds_jax.priors.loading import checkpoint, hub
from sds_jax.priors.loading.files import LARGEST_TEXT, CheckpointError

UNET, INDEX = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors.index.json"
CONFIG, VOCABULARY = "unet/config.json", "tokenizer/vocab.json"


@pytest.fixture
def folder(tiny_prior, tmp_path):
  return pathlib.Path(shutil.copytree(tiny_prior, tmp_path / "prior"))


def refusal(folder):
  """The one line in which opening the prior ends."""
  with pytest.raises(CheckpointError) as caught:
    prior.open_prior(folder)
  message = str(caught.value)
  assert message.count("\n") == 0 and len(message) < 1000
  return message


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
  return dict(dtype=dtype, shape=list(shape), data_offsets=list(offsets))


def weights(path, header, data=b"", length=None):
  """A safetensors file byte by byte; `length` is what it says of its header's."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def with_dtype(path, dtype, size):
  """The file's own tensors, all zero, in another dtype."""
  header, at = {}, 0
  for name, array in load_file(path).items():
    header[name] = tensor(dtype, array.shape, (at, at + size * array.size))
    at += size * array.size
  weights(path, header, b"\0" * at)


def shard(folder, *names):
  """An index in place of the weights that sends the first tensors to `names`."""
  keys = list(load_file(folder / UNET))
  (folder / UNET).rename(folder / "unet" / "all.safetensors")
  places = dict.fromkeys(keys, "all.safetensors") | dict(zip(keys, names))
  (folder / INDEX).write_text(json.dumps(dict(weight_map=places)))


def link(path, target):
  path.unlink()
  path.symlink_to(target)


def pipe(path):
  path.unlink()
  os.mkfifo(path)


def spaces(path, size):
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", size) + b"{}")
    for _ in range(size // 10**6):
      file.write(b" " * 10**6)


OVERLAP = {"a": tensor(), "b": tensor(offsets=(2, 6))}
TWICE = b'{"a": %s, "a": %s}' % ((json.dumps(tensor()).encode(),) * 2)
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HEADERS = {
  "2^62": (UNET, lambda p: weights(p, {}, length=2**62), f"its header should have {2**62} bytes"),
  "200 MB of spaces": (UNET, lambda p: spaces(p, 200 * 10**6), "its header should have 200000000 bytes"),
  "none": (UNET, lambda p: weights(p, b""), "its header should have 0 bytes"),
  "7 bytes": (UNET, lambda p: p.write_bytes(b"1234567"), "its header should have 0 bytes"),
  "beyond the end": (UNET, lambda p: weights(p, {}, length=99), "at most 2 can be"),
  "deep": (UNET, lambda p: weights(p, DEEP), "nested too deeply"),
  "a name twice": (UNET, lambda p: weights(p, TWICE, b"1234"), "the key 'a' stands there twice"),
  "a long name twice": (UNET, lambda p: weights(p, b'{"%s":{},"%s":{}}' % ((b"x" * 10**6,) * 2)), "stands there twice"),
  "not UTF-8": (UNET, lambda p: weights(p, b'{"\xff": {}}'), "header is not JSON"),
  "a list": (UNET, lambda p: weights(p, []), "damaged or truncated"),
  "overlap": (UNET, lambda p: weights(p, OVERLAP, b"123456"), "invalid offset"),
  "the same bytes": (UNET, lambda p: weights(p, {"a": tensor(), "b": tensor()}, b"1234"), "invalid offset"),
  "a hole": (UNET, lambda p: weights(p, {"a": tensor(), "b": tensor(offsets=(8, 12))}, b"1" * 12), "invalid offset"),
  "more than the file": (UNET, lambda p: weights(p, {"a": tensor(shape=(2**40,), offsets=(0, 2**42))}), "damaged"),
  "size is not shape": (UNET, lambda p: weights(p, {"a": tensor(shape=(2,))}, b"1234"), "damaged or truncated"),
  "overflow": (UNET, lambda p: weights(p, {"a": tensor(shape=(2**62, 2**62), offsets=(0, 0))}), "damaged"),
  "negative": (UNET, lambda p: weights(p, {"a": tensor(shape=(-1,))}, b"1234"), "damaged or truncated"),
  "I64": (UNET, lambda p: with_dtype(p, "I64", 8), "has dtype I64; supported:"),
  "C64": (UNET, lambda p: with_dtype(p, "C64", 8), "has dtype C64; supported:"),
  "BOOL": (UNET, lambda p: with_dtype(p, "BOOL", 1), "has dtype BOOL; supported:"),
  "unknown dtype": (UNET, lambda p: weights(p, {"a": tensor("F99")}, b"1234"), "has dtype F99; supported:"),
  "no dtype": (UNET, lambda p: weights(p, {"a": tensor(4)}, b"1234"), "damaged or truncated"),
}
TEXTS = {
  "deep": (CONFIG, lambda p: p.write_bytes(DEEP), "nested too deeply"),
  "deep vocabulary": (VOCABULARY, lambda p: p.write_bytes(b"[" * 100_000), "nested too deeply"),
  "gigantic": (CONFIG, lambda p: os.truncate(p, LARGEST_TEXT + 1), f"has {LARGEST_TEXT + 1} bytes, more than"),
  "a terabyte": ("model_index.json", lambda p: os.truncate(p, 10**12), "has 1000000000000 bytes"),
  "gigantic merges": ("tokenizer/merges.txt", lambda p: os.truncate(p, LARGEST_TEXT + 1), "more than"),
  "merges": ("tokenizer/merges.txt", lambda p: p.write_bytes(b"\xff\xfe"), "no UTF-8"),
  "a key twice": (CONFIG, lambda p: p.write_text('{"in_channels": 3, "in_channels": 4}'), "'in_channels' stands"),
  "a key twice inside": ("model_index.json", lambda p: p.write_text('{"a": [{"b": 1, "b": 1}]}'), "'b' stands"),
  "a number without end": (CONFIG, lambda p: p.write_text('{"in_channels": 1%s}' % ("0" * 5000)), "is not JSON"),
  "no groups": (CONFIG, lambda p: change(p, norm_num_groups=0), ""),
}
LINKS = {
  "dangling": (UNET, lambda p: link(p, "gone"), "is a link to gone, which does not exist"),
  "dangling config": (CONFIG, lambda p: link(p, "gone"), "is a link to gone, which does not exist"),
  "dangling and optional": ("tokenizer/special_tokens_map.json", lambda p: link(p, "gone"), "is a link to gone"),
  "loop": (UNET, lambda p: link(p, p.name), "cannot be read: Too many levels of symbolic links"),
  "pipe": (UNET, pipe, "is no regular file but a pipe"),
  "pipe config": (CONFIG, pipe, "is no regular file but a pipe"),
  "pipe merges": ("tokenizer/merges.txt", pipe, "is no regular file but a pipe"),
  "pipe and optional": ("tokenizer/tokenizer_config.json", pipe, "is no regular file but a pipe"),
  "pipe index": ("model_index.json", pipe, "is no regular file but a pipe"),
  "device": (UNET, lambda p: link(p, "/dev/zero"), "is no regular file but a device"),
  "device config": (CONFIG, lambda p: link(p, "/dev/zero"), "is no regular file but a device"),
  "folder": (CONFIG, lambda p: (p.unlink(), p.mkdir()), "is no regular file but a folder"),
}


def change(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def table(**groups):
  return [pytest.param(*case, id=f"{group}: {name}") for group, cases in groups.items() for name, case in cases.items()]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name, harm, words", table(header=HEADERS, text=TEXTS, link=LINKS))
def test_harm_ends_in_one_line(folder, name, harm, words):
  harm(folder / name)
  message = refusal(folder)
  assert words in message and str(folder / name if words else folder) in message, message


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "a\\b", "a\0b", 3,
                                  ["x"], {"x": 1}, None])
def test_an_index_names_files_beside_it(folder, name):
  shutil.copy(folder / UNET, folder / "x.safetensors")
  shard(folder, name)
  message = refusal(folder)
  assert str(folder / INDEX) in message and "expected the name of a file beside it" in message
  assert sources.missing(folder) == [UNET]  # a cached copy like this one counts as broken


def test_a_shard_that_is_a_pipe(folder):
  shard(folder, "pipe.safetensors")
  os.mkfifo(folder / "unet" / "pipe.safetensors")
  assert refusal(folder) == f"{folder / 'unet' / 'pipe.safetensors'} is no regular file but a pipe"


def test_links_to_files_are_as_good_as_files(folder):
  """The layout of the hub's cache."""
  (folder.parent / "blobs").mkdir()
  for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
    blob = folder.parent / "blobs" / str(number)
    path.rename(blob)
    path.symlink_to(os.path.relpath(blob, path.parent))
  prior.open_prior(folder)[1].load()


def test_float64_is_read(folder):
  tensors = load_file(folder / UNET)
  save_file({name: value.astype(np.float64) for name, value in tensors.items()}, folder / UNET)
  _, params = checkpoint.read_component(folder / "unet", "unet")
  np.testing.assert_array_equal(params["conv_in"]["bias"], tensors["conv_in.bias"])


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "../nowhere", "\ud800", "/dev/zero", "/proc/self/mem",
                                  "~nobody-here/x", "https://host/x", "a/b/c", "-", ".", "'; rm -rf /"])
def test_names_of_priors(name, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  offline = hub.Hub(tmp_path / "hub", *[lambda *_: pytest.fail("asked the hub")] * 2)
  with pytest.raises((CheckpointError, OSError)) as caught:
    families.open_folder(sources.find(name, "float32", offline), Options())
  assert "\n" not in str(caught.value)


def test_nothing_unpickles():
  """No module that runs what it reads, and no call that allows it to."""
  for path in pathlib.Path(sds_jax.__file__).parent.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
               [f"{node.module}"] if isinstance(node, ast.ImportFrom) else [])
      assert not {name.split(".")[0] for name in names} & {
        "pickle", "cPickle", "_pickle", "cloudpickle", "joblib", "dill", "marshal", "shelve"}, path
      if isinstance(node, ast.Attribute):
        assert ast.unparse(node) not in ("torch.load", "pandas.read_pickle"), path
      if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        assert isinstance(node.value, ast.Constant) and node.value.value is False, path
