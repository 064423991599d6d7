"""Networks of published shapes without their weights: random parameters and random text, for timing and for memory.

What they compute means nothing, but it is finite in bfloat16, and it takes as long as the real thing.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
import hashlib
import math
import zlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.priors.loading import names
from sds_jax.types import Array, Params


def random_params(shapes: Params, seed: int = 0) -> Params:
  """Parameters of the given shapes and dtypes, put on the device one by one and in their dtype.

  Kernels and embeddings are uniform with variance 1 / fan-in, so that activations keep their size from layer to layer;
  scales of norms are 1, biases uniform in [-0.02, 0.02]. Each depends on the seed and on its own name alone.

  Args:
    shapes: tree of `jax.ShapeDtypeStruct`.
    seed: of everything.
  """
  def draw(path: names.Path, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if path[-1] == "scale":
      return np.ones(leaf.shape, leaf.dtype)
    limit = 0.02 if path[-1] == "bias" else math.sqrt(3 / _fan_in(path, leaf.shape))
    values = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())]).random(leaf.shape, np.float32)
    values -= 0.5
    values *= 2 * limit
    return values.astype(leaf.dtype, copy=False)

  # NumPy, not jax.random: that would compile a program for each of a hundred shapes, and on CPUs take longer to run.
  return traverse_util.unflatten_dict({path: jax.block_until_ready(jax.device_put(draw(path, leaf)))
                                       for path, leaf in traverse_util.flatten_dict(shapes).items()})


def _fan_in(path: names.Path, shape: tuple[int, ...]) -> int:
  """How many inputs each output of a kernel has; of an embedding, its length."""
  return math.prod(shape[:-1]) if path[-1] == "kernel" else shape[-1]


TEXT_TOKENS = 77
"""Number of tokens of a prompt in all published families."""


def random_text_encoder(width: int) -> Callable[[Sequence[str]], dict[str, Array]]:
  """Returns (prompts) -> {"text": [n, TEXT_TOKENS, width]}, see `random_text`."""
  return lambda prompts: {"text": random_text(prompts, TEXT_TOKENS, width)}


def random_text(prompts: Sequence[str], tokens: int, width: int) -> Array:
  """Embeddings [n, tokens, width] float32, standard normal: the same for the same prompt, others for others."""
  return jnp.stack([random_tokens(prompt.encode(), tokens, width) for prompt in prompts])


def random_tokens(seen: bytes, tokens: int, width: int) -> Array:
  """[tokens, width] float32, standard normal: the same for the same bytes, others for others."""
  seed = int.from_bytes(hashlib.sha256(seen).digest()[:8], "big")
  return jnp.asarray(np.random.default_rng(seed).standard_normal((tokens, width), np.float32))
