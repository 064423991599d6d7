"""Draws random parameters and embeddings of published shapes, to measure time and memory.

The networks' outputs mean nothing, but are finite in bfloat16 and take as long as with the published weights.
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
  """Draws parameters of the given shapes and dtypes; each goes to the device before the next is drawn.

  Kernels and embeddings are uniform with variance 1 / fan-in, so that activations keep their size from layer to layer;
  scales of norms are 1, biases uniform in [-0.02, 0.02]. Each parameter depends on the seed and its name only.

  Args:
    shapes: tree of `jax.ShapeDtypeStruct`.
    seed: of all parameters.
  """
  def draw(path: names.Path, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if path[-1] == "scale":
      return np.ones(leaf.shape, leaf.dtype)
    # A uniform distribution within +-sqrt(3 / n) has variance 1 / n.
    limit = 0.02 if path[-1] == "bias" else math.sqrt(3 / _fan_in(path, leaf.shape))
    # crc32 and not hash(), which Python salts anew in each process.
    values = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())]).random(leaf.shape, np.float32)
    # In place: the largest kernels have hundreds of megabytes.
    values -= 0.5
    values *= 2 * limit
    return values.astype(leaf.dtype, copy=False)

  # NumPy, since jax.random would compile a program for each of a hundred shapes, and is slower on CPUs.
  return traverse_util.unflatten_dict({path: jax.block_until_ready(jax.device_put(draw(path, leaf)))
                                       for path, leaf in traverse_util.flatten_dict(shapes).items()})


def _fan_in(path: names.Path, shape: tuple[int, ...]) -> int:
  """Returns the number of inputs of each output of a kernel; for an embedding, its length."""
  return math.prod(shape[:-1]) if path[-1] == "kernel" else shape[-1]


TEXT_TOKENS = 77
"""Number of tokens of a prompt in all published families."""


def random_text_encoder(width: int, pooled: int = 0) -> Callable[[Sequence[str]], dict[str, Array]]:
  """Returns (prompts) -> {"text": [n, TEXT_TOKENS, width]}, and {"pooled": [n, pooled]} where it is not 0."""
  def embed(prompts: Sequence[str]) -> dict[str, Array]:
    text = {"text": random_text(prompts, TEXT_TOKENS, width)}
    return dict(text, pooled=random_text(prompts, 1, pooled)[:, 0]) if pooled else text

  return embed


def random_text(prompts: Sequence[str], tokens: int, width: int) -> Array:
  """Draws standard normal embeddings [n, tokens, width] float32 that depend on the prompt only."""
  return jnp.stack([random_tokens(prompt.encode(), tokens, width) for prompt in prompts])


def random_tokens(content: bytes, tokens: int, width: int) -> Array:
  """Draws [tokens, width] float32, standard normal, that depend on the bytes only."""
  seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
  return jnp.asarray(np.random.default_rng(seed).standard_normal((tokens, width), np.float32))
