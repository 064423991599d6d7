"""States with every kind of leaf, and a folder with two checkpoints."""
import shutil
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: tuple
  extra: object = None


class Pair(NamedTuple):
  first: jax.Array
  second: object


def _make_state(seed):
  rng = np.random.default_rng(seed)
  params = dict(w=jnp.asarray(rng.normal(size=(8, 6)), jnp.float32), half=jnp.asarray(rng.normal(size=5), jnp.bfloat16),
                nothing={}, none=None, hollow=jnp.zeros((0, 3), jnp.int8))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  odd = np.array([np.nan, -0.0, np.inf, 5e-324], np.float64)
  return State(step=jnp.int32(seed), params=params, opt_state=optimizer.init(params),
               extra=[Pair(jax.random.key(seed), None), jax.random.split(jax.random.key(seed, impl="rbg"), 3), odd,
                      np.array([True, False]), rng.normal(size=3).astype(ml_dtypes.float8_e4m3fn)])


def _bits(tree):
  plain = [jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
           for leaf in jax.tree.leaves(tree)]
  return [(str(leaf.dtype), np.shape(leaf), np.asarray(leaf).tobytes()) for leaf in plain]


@pytest.fixture(scope="session")
def make_state():
  """Returns (seed) -> a state with every kind of leaf and container.

  NamedTuples, two kinds of keys, None, arrays without elements, float64, bfloat16, float8.
  """
  return _make_state


@pytest.fixture(scope="session")
def bits():
  """Returns (tree) -> dtype, shape and bytes of each leaf."""
  return _bits


@pytest.fixture(scope="module")
def two(tmp_path_factory, make_state):
  """Returns a folder with checkpoints of steps 3 and 6."""
  from sds_jax.io.checkpoints import Checkpoints
  folder = tmp_path_factory.mktemp("two") / "checkpoints"
  with Checkpoints(folder) as checkpoints:
    for step in (3, 6):
      metadata = dict(at=step, prompt="a \u2028 c\u00fbbe\ud800", sizes=[1, 2], note=None)
      checkpoints.save(step, make_state(step), metadata)
  return folder


@pytest.fixture
def copy(two, tmp_path):
  """Returns a copy of `two`."""
  return shutil.copytree(two, tmp_path / "checkpoints")
