"""Where the documentation is, and its extensions on the path."""
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
  monkeypatch.syspath_prepend(ROOT)
  monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")


@pytest.fixture
def blocks():
  """Returns the ```python blocks of a file, in order; sketches are ```py blocks."""
  def read(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
  return read
