"""All ways to compute attention against float64 numpy, what they keep in memory, and which one auto takes."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.networks import dot_product
from sds_jax.priors.networks.dot_product import choose_implementation, cudnn_obstacle, dot_product_attention

B, T, S, HEADS, D = 2, 7, 5, 3, 4


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(keys=S):
  return draw(B, T, HEADS, D), draw(B, keys, HEADS, D, seed=1), draw(B, keys, HEADS, 6, seed=2)


def reference(q, k, v, bias=None, scale=None, is_causal=False):
  """(output, gradients of `objective` by q, k and v, and by the scores [B, heads, T, S]) in float64, by hand."""
  q, k, v = (np.asarray(a, np.float64).transpose(0, 2, 1, 3) for a in (q, k, v))
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  scores = scale * q @ k.swapaxes(-1, -2) + (0 if bias is None else np.asarray(bias, np.float64))
  if is_causal:
    scores[..., np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  out = p @ v
  g = np.cos(np.arange(out.size)).reshape(out.transpose(0, 2, 1, 3).shape).transpose(0, 2, 1, 3)
  dp = g @ v.swapaxes(-1, -2)
  ds = p * (dp - (dp * p).sum(-1, keepdims=True))
  grads = scale * ds @ k, scale * ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g
  return out.transpose(0, 2, 1, 3), [a.transpose(0, 2, 1, 3) for a in grads], ds


def objective(out):
  return jnp.vdot(out, jnp.asarray(np.cos(np.arange(out.size)).reshape(out.shape), jnp.float32))


@pytest.fixture
def tiny_chunks(monkeypatch):
  """Room for the scores of three of the seven queries: blocks of 3, 3 and 1 (made of 3 blocks of 3)."""
  monkeypatch.setattr(dot_product, "CHUNK_BYTES", 4 * B * HEADS * S * 3)


@pytest.mark.parametrize("case", ["plain", "bias", "bias_per_key", "causal"])
@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_attention_and_gradient(tiny_chunks, implementation, case):
  q, k, v = inputs(T if case == "causal" else S)
  options = dict(plain={}, causal=dict(is_causal=True), bias=dict(bias=draw(1, HEADS, T, S, seed=3), scale=0.7),
                 bias_per_key=dict(bias=draw(B, 1, 1, S, seed=3)))[case]
  expected, gradient, bias_gradient = reference(q, k, v, **options)

  def run(q, k, v, bias=None):
    with_bias = options if bias is None else options | dict(bias=bias)
    out = dot_product_attention(q, k, v, implementation=implementation, **with_bias)
    return objective(out), out

  (_, got), grads = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(q, k, v)
  np.testing.assert_allclose(got, expected, atol=2e-6)
  for ours, theirs in zip(grads, gradient):
    np.testing.assert_allclose(ours, theirs, atol=5e-6)
  if "bias" in options:
    bias = options["bias"]
    got = jax.jit(jax.grad(lambda bias: run(q, k, v, bias)[0]))(bias)
    summed = tuple(i for i in range(4) if bias.shape[i] == 1)
    np.testing.assert_allclose(got, bias_gradient.sum(summed, keepdims=True), atol=5e-6)


def test_chunked_in_bfloat16_is_as_good_as_xla(tiny_chunks):
  q, k, v = (a.astype(jnp.bfloat16) for a in inputs())
  a, b = (dot_product_attention(q, k, v, implementation=name) for name in ("xla", "chunked"))
  assert a.dtype == b.dtype == jnp.bfloat16
  np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=1e-2)


def largest_array(jaxpr):
  """Elements of the largest value anywhere in a jaxpr."""
  sizes = [variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars]
  inner = [getattr(value, "jaxpr", value) for equation in jaxpr.eqns for value in equation.params.values()]
  return max(sizes + [largest_array(value) for value in inner if hasattr(value, "eqns")])


def test_chunked_never_has_all_scores(monkeypatch):
  """Neither forwards nor in the gradient, where a loop would keep what it had computed."""
  q = jnp.zeros((1, 512, 1, 8))
  def largest(implementation):
    def loss(q, k, v):
      return dot_product_attention(q, k, v, implementation=implementation).sum()
    return largest_array(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2)))(q, q, q).jaxpr)
  monkeypatch.setattr(dot_product, "CHUNK_BYTES", 4 * 512 * 64)
  assert largest("xla") == 512 * 512
  assert largest("chunked") == 512 * 64


def test_auto_follows_the_choice(monkeypatch):
  asked, (q, k, v) = [], inputs()
  def choose(*args):
    asked.append(args)
    return "chunked"
  monkeypatch.setattr(dot_product, "choose_implementation", choose)
  monkeypatch.setattr(dot_product, "_chunked", lambda *args: "chunks")
  assert dot_product_attention(q, k, v) == "chunks"
  assert dot_product_attention(q, q, q, bias=jnp.zeros((1, 1, 1, T))) == "chunks"
  dot_product_attention(q, q, q)
  assert asked == [("cpu", jnp.float32, D, T, S, B * HEADS, False), ("cpu", jnp.float32, D, T, T, B * HEADS, False),
                   ("cpu", jnp.float32, D, T, T, B * HEADS, True)]


@pytest.mark.parametrize("platform, dtype, head_dim, queries, keys, batch_heads, plain, expected", [
  ("cuda", jnp.bfloat16, 40, 4096, 4096, 16, True, "cudnn"),    # SD 1.5, 64x64 latents, with and without prompt: 1 GiB
  ("cuda", jnp.float16, 40, 4096, 4096, 16, True, "cudnn"),
  ("cuda", jnp.float32, 40, 4096, 4096, 16, True, "chunked"),
  ("rocm", jnp.bfloat16, 40, 4096, 4096, 16, True, "chunked"),
  ("tpu", jnp.bfloat16, 40, 4096, 4096, 16, True, "chunked"),
  ("cpu", jnp.float32, 40, 4096, 4096, 16, True, "chunked"),
  ("cuda", jnp.bfloat16, 40, 4096, 4096, 16, False, "chunked"),  # with a bias
  ("cuda", jnp.bfloat16, 80, 1024, 1024, 16, True, "cudnn"),    # its next resolution: 64 MiB
  ("cpu", jnp.float32, 80, 1024, 1024, 16, True, "xla"),
  ("cuda", jnp.bfloat16, 160, 256, 256, 16, True, "xla"),       # its lowest ones: 4 MiB
  ("cuda", jnp.bfloat16, 160, 1024, 1024, 16, True, "xla"),     # heads that are too wide
  ("cuda", jnp.bfloat16, 40, 4096, 77, 16, True, "xla"),        # its text: an odd number of tokens, 19 MiB
  ("cuda", jnp.bfloat16, 64, 1024, 1101, 44, True, "xla"),      # IF-I-XL, 32x32 pixels and 77 tokens: 189 MiB
  ("cuda", jnp.bfloat16, 64, 1024, 1101, 88, True, "chunked"),  # and twice as many images
  ("cuda", jnp.bfloat16, 512, 4096, 4096, 1, True, "xla"),      # SD's autoencoder, one image: 64 MiB
  ("cuda", jnp.bfloat16, 512, 4096, 4096, 8, True, "chunked"),  # and eight
  ("cuda", jnp.bfloat16, 32, 256, 256, 32, True, "xla"),        # small
  ("cuda", jnp.float16, 40, 4096, 4096, 16, True, "cudnn"),
  ("cuda before Ampere", jnp.float16, 40, 4096, 4096, 16, True, "chunked"),  # T4, V100
])
def test_what_auto_takes(platform, dtype, head_dim, queries, keys, batch_heads, plain, expected):
  assert choose_implementation(platform, dtype, head_dim, queries, keys, batch_heads, plain) == expected


@pytest.mark.parametrize("args, message", [
  (("cuda", jnp.bfloat16, 128, 64, 64), None),
  (("tpu", jnp.bfloat16, 64, 64, 64), "needs a CUDA GPU since Ampere, the default backend is tpu"),
  (("cuda", jnp.float32, 64, 64, 64), "takes bfloat16 or float16, not float32"),
  (("cuda", jnp.bfloat16, 36, 64, 64), "takes head sizes that are multiples of 8 up to 128, not 36"),
  (("cuda", jnp.bfloat16, 136, 64, 64), "takes head sizes that are multiples of 8 up to 128, not 136"),
  (("cuda", jnp.bfloat16, 64, 64, 77), "takes even numbers of queries and keys, not 64 and 77"),
  (("cuda", jnp.bfloat16, 64, 63, 64), "takes even numbers of queries and keys, not 63 and 64"),
  (("cuda", jnp.bfloat16, 64, 64, 64, False), "takes no bias and no values of another head size"),
])
def test_what_cudnn_asks(args, message):
  assert cudnn_obstacle(*args) == message


def test_cudnn_is_refused_here():
  x = jnp.zeros((1, 8, 1, 8), jnp.bfloat16)
  with pytest.raises(ValueError, match="attention implementation 'cudnn' needs a CUDA GPU since Ampere, the default "
                                       "backend is cpu; use 'auto', 'xla' or 'chunked'"):
    dot_product_attention(x, x, x, implementation="cudnn")
