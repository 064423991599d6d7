"""Fields that are multilayer perceptrons of encoded points. Each returns (density logit [N], albedo logits [N, 3])."""
from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from sds_jax.fields.encodings import integrated_positional_encoding
from sds_jax.types import Array


class MLPField(nn.Module):
  """A small plain MLP, quick on a CPU: encoding, `depth` layers of `hidden` units with `activation`, one output layer.

  Attributes:
    hidden, depth: size of the hidden layers and their number.
    num_octaves, base: frequencies of the positional encoding.
    activation: "relu", "silu" or "softplus". relu has no second derivative, so analytic normals want a smooth one.
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
    x = integrated_positional_encoding(points, variance, self.num_octaves, self.base)
    for _ in range(self.depth):
      x = activation(nn.Dense(self.hidden, kernel_init=nn.initializers.he_uniform())(x))
    return _split(nn.Dense(4)(x))


class PaperMLPField(nn.Module):
  """DreamFusion's MLP (Appendix A.2): integrated encoding, residual blocks with layer norm, swish.

  Attributes:
    hidden, blocks: width and number of the residual blocks (paper: 128 and 5).
    num_octaves, base: frequencies base 2^l (paper: 8 octaves from 2^0).
    variance: of the Gaussian around a point whose mean encoding is taken, where the caller gives none; world units
      squared (the paper's, at the end of a run).
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
