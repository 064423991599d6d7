"""The script that made the golden files makes them again."""
import importlib.util
from pathlib import Path
import warnings

import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parents[2] / "golden"


def test_the_script_makes_them_again(torch, diffusers, transformers, tmp_path):
  spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
  make = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(make)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    make.write(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == set(make.CASES)
  assert {path.parent.name for path in GOLDEN.rglob("config.json")} == set(make.CASES)
  for path in tmp_path.rglob("*.safetensors"):
    new, old = load_file(path), load_file(GOLDEN / path.relative_to(tmp_path))
    assert set(new) == set(old)
    for key in new:
      if new[key].dtype == np.float32:  # the outputs
        np.testing.assert_allclose(new[key], old[key], rtol=1e-4, atol=1e-5 * np.abs(old[key]).max())
      else:
        np.testing.assert_array_equal(new[key], old[key])
