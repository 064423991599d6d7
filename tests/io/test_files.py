"""Atomic writes, JSON, folder names from prompts, and the metrics log."""
import json
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.io import files


def names(folder):
  return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("existing", [None, b"before"])
def test_a_failed_write_leaves_the_old_file_only(tmp_path, existing):
  path = tmp_path / "deep" / "result.bin"
  if existing:
    path.parent.mkdir()
    path.write_bytes(existing)
  with pytest.raises(RuntimeError, match="disk on fire"):
    with files.atomic_write(path) as file:
      file.write(b"half of")
      file.flush()
      assert not existing or path.read_bytes() == existing
      raise RuntimeError("disk on fire")
  assert names(path.parent) == (["result.bin"] if existing else [])
  assert not existing or path.read_bytes() == existing


def test_a_write_replaces_the_file_and_leaves_no_temporary_file(tmp_path):
  path = tmp_path / "result.bin"
  path.write_bytes(b"before")
  with files.atomic_write(path) as file:
    file.write(b"after")
    file.flush()
    temporary, = set(names(tmp_path)) - {"result.bin"}
    assert temporary.startswith(".")  # same folder, so that the rename cannot cross file systems
    assert path.read_bytes() == b"before"
  assert names(tmp_path) == ["result.bin"] and path.read_bytes() == b"after"


def test_arrays_become_standard_json(tmp_path):
  data = {"a": np.float32(1.5), "b": jnp.arange(3), "c": float("nan"), "d": jnp.bfloat16(2.0), "e": [np.inf, True, "é"],
          "f": tmp_path, "g": {1: None}}
  path = files.write_json(data, tmp_path / "x.json")

  def refuse(constant):
    raise AssertionError(constant)
  assert json.loads(path.read_text("utf-8"), parse_constant=refuse) == {
    "a": 1.5, "b": [0, 1, 2], "c": None, "d": 2.0, "e": [None, True, "é"], "f": str(tmp_path), "g": {"1": None}}


@pytest.mark.parametrize("prompt, slug", [
  ("a red cube", "a-red-cube"), ("  A  Red\tCUBE!\n", "a-red-cube"), ("a café, très chic", "a-cafe-tres-chic"),
  ("../../etc/passwd", "etc-passwd"), ("C:\\temp\\x", "c-temp-x"), ("a 🐱 cat", "a-cat"),
  ("x" * 60, "x" * 60), ("ﬁsh", "fish"),
])
def test_slug_of_ordinary_and_hostile_prompts(prompt, slug):
  assert files.prompt_slug(prompt) == slug


@pytest.mark.parametrize("prompt", [
  "", ".", "..", "/", "\0", "🐱", "一只猫", "a 猫", "con", "NUL", "a\nb/../c", "word " * 2000, "x" * 10_000, "\ud800",
  "-" * 99, "~root", "$(rm -rf *)", "a" * 58 + " bcd",
])
def test_slug_is_a_safe_folder_name(tmp_path, prompt):
  slug = files.prompt_slug(prompt)
  assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) and len(slug) <= 60
  assert slug not in ("con", "nul") and slug == files.prompt_slug(prompt)
  (tmp_path / slug).mkdir()
  assert names(tmp_path) == [slug]


def test_a_pipe_is_not_read(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(files.DamagedFileError, match="is no file"):
    files.read_json(tmp_path / "pipe")


def test_slugs_of_long_or_foreign_prompts_differ():
  prompts = ["word " * 100 + end for end in "abc"] + ["一只猫", "一只狗", "a 猫", "a 狗", "a", "", "?", "!!"]
  assert len({files.prompt_slug(p) for p in prompts}) == len(prompts)


def test_metrics_round_trip_and_truncation(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert files.read_metrics(path) == [] and files.truncate_metrics(path, 5) == 0
  for step in range(0, 50, 10):
    files.append_metrics(path, step, {"norm": np.float32(step / 2), "bad": float("inf")})
  assert files.read_metrics(path)[3] == {"step": 30, "norm": 15.0, "bad": None}
  assert files.truncate_metrics(path, 20) == 3
  files.append_metrics(path, 30, {"norm": 1})
  assert [r["step"] for r in files.read_metrics(path)] == [0, 10, 20, 30] and names(tmp_path) == ["metrics.jsonl"]


def test_a_cut_last_line_is_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  files.append_metrics(path, 1, {"a": 1.25})
  whole = path.read_bytes()
  files.append_metrics(path, 2, {"a": 2.5})
  both = path.read_bytes()
  for cut in range(len(whole), len(both)):
    path.write_bytes(both[:cut])
    assert [r["step"] for r in files.read_metrics(path)] == [1]
    files.append_metrics(path, 3, {"a": 3.0})
    assert [r["step"] for r in files.read_metrics(path)] == [1, 3]


def test_a_damaged_line_is_an_error_with_the_line_number(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(files.DamagedFileError, match=r"metrics\.jsonl, line 2"):
    files.read_metrics(path)
