"""Torch's archives are read without torch; nothing in them runs; damaged and hostile ones end in one line, promptly."""
import os
import resource
import struct
import time
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from sds_jax.priors.loading import pickles
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.tensor_files import open_tensors

def name(module, attribute):
  return f"c{module}\n{attribute}\n".encode()


def text(value):
  data = value.encode()
  return b"X" + len(data).to_bytes(4, "little") + data


def integer(value):
  data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*items):
  return b"(" + b"".join(items) + b"t"


def mapping(items):
  return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(kind, key, count):
  return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), integer(count)) + b"Q"


def tensor(stored, shape, strides, offset=0):
  hooks = name("collections", "OrderedDict") + b")R"
  return name("torch._utils", "_rebuild_tensor_v2") + tuple_of(
    stored, integer(offset), tuple_of(*map(integer, shape)), tuple_of(*map(integer, strides)), b"\x89", hooks) + b"R"


def call(module, attribute, *arguments):
  return name(module, attribute) + tuple_of(*arguments) + b"R"


def write(path, body, storages=None, program=None, compression=zipfile.ZIP_STORED, root="archive", extra=()):
  """Writes an archive of a pickle's body (between protocol and STOP) and {key: bytes}."""
  with zipfile.ZipFile(path, "w", compression) as file:
    file.writestr(f"{root}/data.pkl", b"\x80\x02" + body + b"." if program is None else program)
    for member, content in extra:
      file.writestr(member, content)
    for key, content in (storages or {}).items():
      file.writestr(f"{root}/data/{key}", content)
  return path


NUMBERS = np.arange(12, dtype=np.float32)
FOUR = storage("FloatStorage", "0", 4)


def read(path):
  """{name: array}, and the warning."""
  with pytest.warns(UserWarning, match="is a pickle, of which only the tensors are read") as caught:
    tensors = open_tensors(path)
  return {key: stored.read() for key, stored in tensors.items()}, str(caught[0].message)


def refusal(path):
  """The one line in which opening ends, within seconds and without much memory."""
  before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
  with warnings.catch_warnings(), pytest.raises(CheckpointError) as caught:
    warnings.simplefilter("ignore")
    for stored in open_tensors(path).values():
      stored.read()
  assert time.monotonic() - start < 20 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
  message = str(caught.value)
  assert "\n" not in message and len(message) < 600 and str(path) in message
  return message


@pytest.mark.parametrize("kind, dtype", [
  ("DoubleStorage", np.float64), ("FloatStorage", np.float32), ("HalfStorage", np.float16),
  ("BFloat16Storage", ml_dtypes.bfloat16), ("LongStorage", np.int64)])
def test_dtypes(tmp_path, kind, dtype):
  stored = NUMBERS.astype(dtype)
  body = mapping({"a": tensor(storage(kind, "0", 12), (3, 4), (4, 1))})
  got, _ = read(write(tmp_path / "w.bin", body, {"0": stored.tobytes()}))
  assert got["a"].dtype == dtype
  np.testing.assert_array_equal(got["a"], stored.reshape(3, 4))


def test_strides_offsets_and_shared_storages(tmp_path):
  whole = storage("FloatStorage", "7", 12)
  body = mapping({"t": tensor(whole, (4, 3), (1, 4)), "rest": tensor(whole, (2,), (4,), 3),
                     "one": tensor(whole, (), (), 5), "none": tensor(whole, (0, 3), (3, 1)),
                     "same": tensor(whole, (2, 2), (0, 1)), "parameter": call(
                       "torch._utils", "_rebuild_parameter", tensor(whole, (12,), (1,)), b"\x88", b")")})
  got, _ = read(write(tmp_path / "w.bin", body, {"7": NUMBERS.tobytes()}))
  np.testing.assert_array_equal(got["t"], NUMBERS.reshape(3, 4).T)
  np.testing.assert_array_equal(got["rest"], [3, 7])
  np.testing.assert_array_equal(got["same"], [[0, 1], [0, 1]])
  np.testing.assert_array_equal(got["parameter"], NUMBERS)
  assert got["one"] == 5 and got["none"].shape == (0, 3)


def hostile(where):
  """Pickle code that would make the file `where`, by each way to call something."""
  command = text(f"touch {where}")
  return {
    "reduce": call("os", "system", command), "builtin": call("builtins", "exec", command),
    "new object": name("subprocess", "Popen") + tuple_of(command) + b"\x81",
    "new object by keywords": name("subprocess", "Popen") + tuple_of(command) + b"}\x92",
    "instance": b"(" + command + b"ios\nsystem\n", "object": b"(" + name("os", "system") + command + b"o",
    "stack global": text("os") + text("system") + b"\x93" + tuple_of(command) + b"R",
    "build": name("os", "system") + command + b"b", "nested": tuple_of(call("os", "system", command)),
    "torch's name": call("torch._utils", "_rebuild_tensor_v2", call("os", "system", command)),
    "getattr": call("builtins", "getattr", name("os", "path"), text("system")) + tuple_of(command) + b"R",
    "extension": b"\x82\x01"}


@pytest.mark.parametrize("way", sorted(hostile("")))
def test_nothing_runs(tmp_path, way):
  """Beside a mapping of tensors, as Lightning writes; within it; and alone."""
  code, weights = hostile(tmp_path / "ran")[way], tensor(FOUR, (4,), (1,))
  body = mapping({"callbacks": code, "epoch": integer(3), "state_dict": mapping({"w": weights, "x": code})})
  got, told = read(write(tmp_path / "m.ckpt", body, {"0": NUMBERS[:4].tobytes()}))
  assert list(got) == ["w"] and not (tmp_path / "ran").exists()
  assert ("which was ignored: nothing of it was run" in told) == (way != "extension"), told
  message = refusal(write(tmp_path / "n.ckpt", code))
  assert "has no mapping from names to tensors" in message and not (tmp_path / "ran").exists()


def test_the_names_are_told(tmp_path):
  body = mapping({"a": call("os", "system", text("x")), "state_dict": mapping({
    "w": tensor(FOUR, (4,), (1,))})})
  _, told = read(write(tmp_path / "m.ckpt", body, {"0": NUMBERS[:4].tobytes()}))
  assert "it also names os.system, which was ignored" in told and "Safetensors are safer and faster" in told
  assert "\n" not in told


def bomb(levels):
  """Nested pairs, each of twice the last: 2^levels leaves for whoever walks or hashes them."""
  return b"(" + b"t" + b"2\x86" * levels


BODIES = {
  "cycle": b"]q\x00h\x00a", "cyclic mapping": b"}q\x00(" + text("state_dict") + b"h\x00u",
  "pairs of pairs": bomb(200), "pairs as a key": b"}" + bomb(200) + b"K\x01s", "deep": b"]" * 100_000,
  "deep tuples": b")" + b"\x85" * 100_000, "many operations": b"N0" * 300_000, "no value": b"",
  "unknown memo": b"h\x07", "a mark": b"(", "a long text": b"X" + b"\xff\xff\xff\x7f" + b"abc",
  "a huge text": b"\x8d" + b"\xff" * 7 + b"\x7f" + b"abc", "huge bytes": b"\x96" + b"\xff" * 7 + b"\x7f" + b"abc",
  "a huge memo": b"Nr\xff\xff\xff\xff", "digits": b"I" + b"9" * 100_000 + b"\n", "odd items": b"}(Nu",
  "key without hash": b"}]Ns", "text": b"hello", "escapes": b"S'\\x'\n", "not UTF-8": b"X\x02\x00\x00\x00\xff\xff",
  "items of a number": b"K\x01(K\x01K\x01u", "append to none": b"NNa",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", BODIES)
def test_harmful_programs(tmp_path, case):
  refusal(write(tmp_path / "w.bin", BODIES[case]))


def described(**changes):
  values = dict(stored=FOUR, shape=(2, 2), strides=(2, 1), offset=0) | changes
  return mapping({"w": tensor(**values)})


TENSORS = {
  "beyond its storage": (described(shape=(3, 2)), "has more numbers than its storage"),
  "offset": (described(offset=1), "has more numbers than its storage"),
  "a wide stride": (described(strides=(2**40, 1)), "has more numbers than its storage"),
  "an empty one far away": (described(shape=(0, 2), offset=2**40), "has more numbers than its storage"),
  "a longer storage": (described(stored=storage("FloatStorage", "0", 8), shape=(8,), strides=(1,)),
                       "has more numbers"),
  "no storage": (described(stored=storage("FloatStorage", "9", 4)), "lacks the numbers of w"),
  "a path": (described(stored=storage("FloatStorage", "../data.pkl", 4)), "lacks the numbers of w"),
  "negative": (described(shape=(-2, 2)), "has no mapping"), "negative stride": (described(strides=(-2, 1)), "has no"),
  "astronomic": (described(shape=(2**62, 2**62), strides=(0, 0)), "has no mapping"),
  "flat": (described(shape=(2,) * 40, strides=(0,) * 40), "has no mapping"),
  "ranks": (described(strides=(1,)), "has no mapping"), "floats": (mapping({"w": name(
    "torch._utils", "_rebuild_tensor_v2") + tuple_of(FOUR, b"G" + b"\0" * 8, b")", b")") + b"R"}), "has no mapping"),
  "a quantized one": (mapping({"w": call("torch._utils", "_rebuild_qtensor", FOUR, b"K\x00", b")", b")")}),
                      "has no mapping"),
  "another storage": (described(stored=storage("ComplexFloatStorage", "0", 4)), "has no mapping"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_harmful_tensors(tmp_path, case):
  body, words = TENSORS[case]
  assert words in refusal(write(tmp_path / "w.bin", body, {"0": NUMBERS[:4].tobytes()}))


def test_a_repeated_row_takes_no_memory_before_it_is_read(tmp_path):
  """A tensor of strides 0 may be any size; the network's shapes are compared before anything is read."""
  body = described(shape=(2**20, 2**20), strides=(0, 0))
  path = write(tmp_path / "w.bin", body, {"0": NUMBERS[:4].tobytes()})
  with pytest.warns(UserWarning):
    assert open_tensors(path)["w"].shape == (2**20, 2**20)


def good(path):
  return write(path, described(), {"0": NUMBERS[:4].tobytes()})


def edit(path, offset, data):
  with open(path, "r+b") as file:
    file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
    file.write(data)


def overlapping(path):
  """The directory sends the storage to the place of the pickle."""
  good(path)
  data = path.read_bytes()
  entry = data.rindex(b"PK\x01\x02")
  other = data.rindex(b"archive/data.pkl") - 46
  edit(path, entry + 42, data[other + 42:other + 46])


ARCHIVES = {
  "compressed": (lambda p: write(p, described(), {"0": b"\0" * 16}, compression=zipfile.ZIP_DEFLATED),
                 "is compressed, which torch's files never are"),
  "truncated": (lambda p: p.write_bytes(good(p).read_bytes()[:-40]), "the end of the archive is missing"),
  "head only": (lambda p: p.write_bytes(b"PK\x03\x04"), "the end of the archive is missing"),
  "overlap": (overlapping, "damaged"),
  "no pickle": (lambda p: write(p, b"", root="a/b", program=b"").rename(p) and _rename(p), "none that torch wrote"),
  "two pickles": (lambda p: write(p, described(), extra=[("x/data.pkl", b"")]), "it has 2 data.pkl"),
  "a name twice": (lambda p: _twice(p), "a name stands twice"),
  "big endian": (lambda p: write(p, described(), {"0": b"\0" * 16}, extra=[("archive/byteorder", b"big")]),
                 "another byte order"),
  "a gigantic directory": (lambda p: _directory_size(p, 2**31), "at most 16777216 are read"),
  "legacy": (lambda p: p.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
             "torch before 1.6"),
  "a gigantic pickle": (lambda p: write(p, b"N0" * 9_000_000), "at most 16777216 are read"),
}


def _rename(path):
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("readme.txt", "hello")


def _twice(path):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    write(path, described(), {"0": b"\0" * 16}, extra=[("archive/data/0", b"\0" * 16)])


def _directory_size(path, size):
  data = bytearray(good(path).read_bytes())
  end = data.rindex(b"PK\x05\x06")
  struct.pack_into("<I", data, end + 12, size)
  path.write_bytes(data)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", ARCHIVES)
def test_harmful_archives(tmp_path, case):
  make, words = ARCHIVES[case]
  make(tmp_path / "w.bin")
  assert words in refusal(tmp_path / "w.bin")


@pytest.mark.timeout(120)
def test_changed_bytes(tmp_path):
  """Whatever byte is changed: tensors of their shapes, or one line."""
  whole = good(tmp_path / "w.bin").read_bytes()
  rng = np.random.default_rng(0)
  for _ in range(400):
    data = bytearray(whole)
    for place in rng.integers(0, len(data), rng.integers(1, 4)):
      data[place] = rng.integers(256)
    (tmp_path / "w.bin").write_bytes(data[:rng.integers(len(data))] if rng.random() < 0.1 else data)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      try:
        for stored in open_tensors(tmp_path / "w.bin").values():
          if np.prod(stored.shape) < 1e6:
            assert stored.read().shape == stored.shape
      except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.timeout(120)
def test_random_programs(tmp_path):
  """Random operations end in a value or an error, and never in a call."""
  rng, codes = np.random.default_rng(1), [operation.code.encode("latin1") for operation in pickles.pickletools.opcodes]
  for _ in range(2000):
    program = b"".join(codes[i] + (b"\0" if rng.random() < 0.3 else b"") for i in rng.integers(0, len(codes), 30))
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      try:
        pickles.run(b"\x80\x02" + program + b".")
      except Exception:
        pass
