"""Fields that are multilayer perceptrons of encoded points.

Each module maps points [N, 3] to (density logit [N], albedo logits [N, 3]).
"""
from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from sds_jax.fields.encodings import integrated_positional_encoding
from sds_jax.types import Array


class MLPField(nn.Module):
  """A small plain MLP of the positional encoding, quick on a CPU.

  Attributes:
    hidden, depth: width and number of the hidden layers.
    num_octaves, base: frequencies base 2^l, l < num_octaves, of the positional encoding.
    activation: "relu", "silu" or "softplus". Losses on analytic normals differentiate twice, and the second derivative
      of relu is 0: prefer a smooth activation.
  """
  hidden: int = 32
  depth: int = 2
  num_octaves: int = 4
  base: float = math.pi
  activation: str = "silu"

  @nn.compact
  def __call__(self, points: Array, variance: Array | None = None) -> tuple[Array, Array]:
    variance = jnp.zeros((), points.dtype) if variance is None else variance
    activation = {"relu": nn.relu, "silu": nn.silu, "softplus": nn.softplus}[self.activation]
    # Variance 0 damps nothing: the plain positional encoding.
    x = integrated_positional_encoding(points, variance, self.num_octaves, self.base)
    for _ in range(self.depth):
      x = activation(nn.Dense(self.hidden, kernel_init=nn.initializers.he_uniform())(x))
    return _split(nn.Dense(4)(x))


class PaperMLPField(nn.Module):
  """DreamFusion's MLP (Appendix A.2): integrated encoding, residual blocks with layer norm, swish.

  Attributes:
    hidden, blocks: width and number of the residual blocks (paper: 128 and 5).
    num_octaves, base: frequencies base 2^l, l < num_octaves (paper: 8 octaves from 2^0).
    variance: variance of the Gaussian around each point for calls without a variance, world units squared. The default
      is the paper's value at the end of training.
  """
  hidden: int = 128
  blocks: int = 5
  num_octaves: int = 8
  base: float = 1.0
  variance: float = 2e-3

  @nn.compact
  def __call__(self, points: Array, variance: Array | None = None) -> tuple[Array, Array]:
    variance = jnp.full((), self.variance, points.dtype) if variance is None else variance
    x = integrated_positional_encoding(points, variance, self.num_octaves, self.base, identity=False)
    x = nn.Dense(self.hidden)(x)
    for _ in range(self.blocks):
      h = nn.Dense(self.hidden)(nn.silu(nn.LayerNorm()(x)))
      x = x + nn.Dense(self.hidden)(nn.silu(h))
    return _split(nn.Dense(4)(nn.silu(nn.LayerNorm()(x))))


def _split(out: Array) -> tuple[Array, Array]:
  return out[:, 0], out[:, 1:]
