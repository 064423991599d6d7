"""T5's encoder against slow loops in numpy; against transformers in parity/."""
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors.loading import checkpoint, t5_stream
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.networks.t5 import T5EncoderModel
from sds_jax.priors.networks.t5_bias import attention_bias, position_buckets

T5 = dict(model_type="t5", vocab_size=30, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=2,
          relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj="gated-gelu",
          layer_norm_epsilon=1e-3, is_encoder_decoder=True, pad_token_id=0, eos_token_id=1)
IDS = np.random.default_rng(0).integers(2, 30, (2, 9))
MASK = np.array([[1] * 9, [1] * 4 + [0] * 5])


@pytest.fixture(scope="module")
def t5(random_params):
  model = T5EncoderModel.from_config(T5)
  return model, random_params(model)


@pytest.fixture(scope="module")
def encode(t5, quick_jit):
  """(params, ids, mask, dtype) -> states as float32; compiled once for each dtype."""
  @functools.cache
  def compiled(dtype):
    function = jax.jit(t5[0].clone(dtype=dtype).apply)
    return function.lower({"params": cast(t5[1], dtype)}, IDS, MASK).compile({"xla_backend_optimization_level": 0})

  def run(params, ids=IDS, mask=MASK, dtype=jnp.float32):
    states = compiled(dtype)({"params": cast(params, dtype)}, ids, mask)
    assert states.dtype == dtype
    return states.astype(jnp.float32)

  return run


def cast(params, dtype):
  return jax.tree.map(lambda a: a.astype(dtype), params)


def norm_error(got, expected):
  got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
  return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.fixture
def folder(t5, tmp_path):
  checkpoint.write_component(tmp_path / "t5", "t5", T5, t5[1], dtype=jnp.float32)
  return tmp_path / "t5"


def bucket_by_definition(offset, buckets, max_distance):
  """Exact in integers: the j-th wide bucket begins at distance e (D / e)^(j / n)."""
  half = buckets // 2
  exact, distance, first = half // 2, abs(offset), half if offset > 0 else 0
  if distance < exact:
    return first + distance
  n = half - exact
  j = max(j for j in range(n + 1) if max_distance**j * exact**n <= distance**n * exact**j) if distance else 0
  return first + exact + min(j, n - 1)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 20), (6, 50), (4, 3)])
def test_position_buckets(buckets, max_distance):
  length = 2 * max_distance
  got = position_buckets(length, buckets, max_distance)
  expected = [[bucket_by_definition(j - i, buckets, max_distance) for j in range(length)] for i in range(length)]
  np.testing.assert_array_equal(got, expected)
  assert got.max() == buckets - 1 and got.dtype == np.int32


def test_published_buckets():
  """As the paper's authors count: with 32 buckets and 128, one each up to 7, doubling every second bucket from 8."""
  first_of_bucket = {0: 0, 7: 7, 8: 8, 11: 8, 12: 9, 15: 9, 16: 10, 22: 10, 23: 11, 32: 12, 46: 13, 64: 14, 91: 15,
                     127: 15, 128: 15, 400: 15}
  row = position_buckets(401, 32, 128)[0]
  assert [row[d] - 16 * (d > 0) for d in first_of_bucket] == list(first_of_bucket.values())


def test_attention_bias():
  table = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
  got = attention_bias(jnp.asarray(table), 9, 20, jnp.asarray(MASK))
  assert got.shape == (2, 2, 9, 9)
  got = np.asarray(got)
  for b, h, i, j in np.ndindex(got.shape):
    bias = table[bucket_by_definition(j - i, 8, 20), h]
    assert got[b, h, i, j] == (bias if MASK[b, j] else np.finfo(np.float32).min)
  np.testing.assert_array_equal(attention_bias(jnp.asarray(table), 9, 20), got[:1])


def in_numpy(params, ids, mask, gated=True):
  """The encoder in float64, one head and one query at a time."""
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  tree = params["encoder"]
  table = tree["relative_attention_bias"]["embedding"]

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + T5["layer_norm_epsilon"]) * scale

  def attend(p, x, visible):
    q, k, v = (x @ p[name]["kernel"] for name in "qkv")
    out = np.zeros_like(q)
    for h, i in np.ndindex(2, len(x)):
      part = slice(5 * h, 5 * h + 5)
      scores = [q[i, part] @ k[j, part] + table[bucket_by_definition(j - i, 8, 20), h] for j in visible]
      weights = np.exp(scores) / np.exp(scores).sum()
      out[i, part] = weights @ v[visible][:, part]
    return out @ p["o"]["kernel"]

  def perceptron(p, x):
    if not gated:
      return np.maximum(x @ p["wi"]["kernel"], 0) @ p["wo"]["kernel"]
    a = x @ p["wi_0"]["kernel"]
    gelu = a / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    return (gelu * (x @ p["wi_1"]["kernel"])) @ p["wo"]["kernel"]

  rows = []
  for row, visible in zip(ids, mask):
    x = params["shared"]["embedding"][row]
    for i in range(2):
      first, second = tree[f"block_{i}"]["layer_0"], tree[f"block_{i}"]["layer_1"]
      x = x + attend(first["SelfAttention"], norm(x, first["layer_norm"]["scale"]), np.flatnonzero(visible))
      x = x + perceptron(second["DenseReluDense"], norm(x, second["layer_norm"]["scale"]))
    rows.append(norm(x, tree["final_layer_norm"]["scale"]))
  return np.stack(rows)


def test_encoder_against_numpy(t5, encode):
  np.testing.assert_allclose(encode(t5[1]), in_numpy(t5[1], IDS, MASK), atol=2e-5)


def test_relu_encoder_against_numpy(random_params, quick_jit):
  model = T5EncoderModel.from_config(T5 | dict(feed_forward_proj="relu"))
  params = random_params(model)
  got = quick_jit(model.apply, {"params": params}, IDS, MASK)
  np.testing.assert_allclose(got, in_numpy(params, IDS, MASK, gated=False), atol=2e-5)


def test_padding_is_invisible(t5, encode):
  states, other = encode(t5[1]), encode(t5[1], ids=np.where(MASK, IDS, 7))
  np.testing.assert_array_equal(states[1, :4], other[1, :4])
  unmasked = encode(t5[1], mask=np.ones_like(MASK))
  np.testing.assert_array_equal(unmasked[0], states[0])
  assert float(jnp.abs(unmasked[1, :4] - states[1, :4]).max()) > 1e-2


def test_mask_of_another_shape(t5):
  with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 8\), input_ids \(2, 9\)"):
    t5[0].apply({"params": t5[1]}, IDS, MASK[:, 1:])


def test_bfloat16_is_near_float32(t5, encode):
  assert 1e-4 < norm_error(encode(t5[1], dtype=jnp.bfloat16), encode(t5[1])) < 2e-2


def test_float16_survives_a_large_stream(t5, encode):
  """As in the published large encoders, whose states leave float16's range; the norms bring them back."""
  params = jax.tree.map_with_path(lambda path, a: a * (3e4 if "'wo'" in jax.tree_util.keystr(path) else 1), t5[1])
  assert norm_error(encode(params, dtype=jnp.float16), encode(params)) < 1e-2


@pytest.mark.parametrize("change, message", [
  (dict(feed_forward_proj="gated-silu"), "feed_forward_proj='gated-silu' is not supported; supported: 'relu', 'gated-"),
  (dict(dense_act_fn="gelu"), r"dense_act_fn='gelu' is not supported; supported: 'gelu_new' \(feed_forward_proj is"),
  (dict(is_gated_act=False), r"is_gated_act=False is not supported; supported: True"),
  (dict(is_decoder=True), "is_decoder=True is not supported; supported: False"),
  (dict(model_type="umt5"), "model_type='umt5' is not supported; supported: 't5'"),
  (dict(relative_attention_num_buckets=7), "relative_attention_num_buckets=7 is not supported; supported: even"),
  (dict(relative_attention_max_distance=2), "relative_attention_max_distance=2 is not supported; supported: numbers a"),
  (dict(new_option=1), "new_option=1 is not a known option"),
])
def test_config_is_refused(change, message):
  with pytest.raises(ValueError, match="T5EncoderModel config: " + message):
    T5EncoderModel.from_config(T5 | change)


XXL = dict(
  architectures=["T5EncoderModel"], d_ff=10240, d_kv=64, d_model=4096, decoder_start_token_id=0,
  dense_act_fn="gelu_new", dropout_rate=0.1, eos_token_id=1, feed_forward_proj="gated-gelu", initializer_factor=1.0,
  is_encoder_decoder=True, is_gated_act=True, layer_norm_epsilon=1e-6, model_type="t5", num_decoder_layers=24,
  num_heads=64, num_layers=24, output_past=True, pad_token_id=0, relative_attention_max_distance=128,
  relative_attention_num_buckets=32, tie_word_embeddings=False, torch_dtype="float32", transformers_version="4.28.0",
  use_cache=True, vocab_size=32128)


def test_size_of_the_encoder_of_if():
  assert T5EncoderModel.from_config(XXL).num_layers == 24
  shapes = checkpoint.abstract_params(T5EncoderModel.from_config(XXL | dict(num_layers=1))).values()
  block = 4 * 4096**2 + 3 * 4096 * 10240 + 2 * 4096
  assert sum(math.prod(leaf.shape) for leaf in shapes) == block + 32128 * 4096 + 32 * 64 + 4096


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def rewrite(folder, change):
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")


def test_names_in_the_file(t5, folder):
  tensors, tree = load_file(folder / "model.safetensors"), t5[1]["encoder"]
  prefix = "encoder.block.0.layer.0.SelfAttention"
  np.testing.assert_array_equal(tensors[f"{prefix}.relative_attention_bias.weight"],
                                tree["relative_attention_bias"]["embedding"])
  np.testing.assert_array_equal(tensors[f"{prefix}.q.weight"],
                                tree["block_0"]["layer_0"]["SelfAttention"]["q"]["kernel"].T)
  np.testing.assert_array_equal(tensors["encoder.block.1.layer.1.DenseReluDense.wi_1.weight"],
                                tree["block_1"]["layer_1"]["DenseReluDense"]["wi_1"]["kernel"].T)
  np.testing.assert_array_equal(tensors["encoder.final_layer_norm.weight"], tree["final_layer_norm"]["scale"])
  assert "shared.weight" in tensors and "encoder.embed_tokens.weight" not in tensors
  model, params = checkpoint.read_component(folder, "t5")
  assert model == t5[0]
  assert_equal(params, t5[1])


def test_whole_models_and_tied_copies(t5, folder):
  def whole_model(tensors):
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1  # a copy has no say where the original is
    tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = tensors["lm_head.weight"] = np.zeros((2, 2), np.float32)
  rewrite(folder, whole_model)
  assert_equal(checkpoint.read_component(folder, "t5")[1], t5[1])
  rewrite(folder, lambda tensors: tensors.update(
    {"encoder.embed_tokens.weight": tensors.pop("shared.weight")}))
  assert_equal(checkpoint.read_component(folder, "t5")[1], t5[1])
  rewrite(folder, lambda tensors: tensors.pop("encoder.embed_tokens.weight"))
  with pytest.raises(CheckpointError, match=r"missing in the file \(1\): shared.weight$"):
    checkpoint.read_component(folder, "t5")


def shard(folder):
  tensors = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  weight_map = {}
  for i in range(3):
    file = f"model-0000{i + 1}-of-00003.safetensors"
    part = dict(list(tensors.items())[i::3])
    save_file(part, folder / file)
    weight_map |= dict.fromkeys(part, file)
  (folder / "model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=weight_map)))


def test_in_layers_from_shards(t5, folder, encode):
  shard(folder)
  model, read = t5_stream.open_parts(folder, jnp.float32)
  assert norm_error(t5_stream.encode_in_layers(read, model, jnp.asarray(IDS), jnp.asarray(MASK)), encode(t5[1])) < 1e-6
  (folder / "model-00002-of-00003.safetensors").unlink()
  with pytest.raises(CheckpointError, match="model-00002-of-00003.safetensors does not exist"):
    t5_stream.open_parts(folder)


def test_in_layers_holds_one_block_and_compiles_once(t5):
  model, params = t5[0], jax.tree.map(np.asarray, t5[1])
  block_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params["encoder"]["block_0"]))
  asked, live = [], []

  def read(*path):
    asked.append(path)
    live.append(sum(array.nbytes for array in jax.live_arrays()))
    return t5_stream.parts_of(params)(*path)

  ids, mask = jnp.asarray(IDS[:, :5]), jnp.asarray(MASK[:, :5])
  compiled = t5_stream._block._cache_size()
  before = sum(array.nbytes for array in jax.live_arrays())
  t5_stream.encode_in_layers(read, model, ids, mask)
  assert asked == [("shared",), ("encoder", "relative_attention_bias"), *(("encoder", f"block_{i}") for i in range(2)),
                   ("encoder", "final_layer_norm")]
  assert max(live) - before < block_bytes  # whenever a part is read, the last one is gone
  assert t5_stream._block._cache_size() - compiled == 1


def test_in_layers_in_bfloat16(t5, folder, encode):
  model, read = t5_stream.open_parts(folder)
  assert model.dtype == jnp.bfloat16
  got = t5_stream.encode_in_layers(read, model, jnp.asarray(IDS), jnp.asarray(MASK))
  assert got.dtype == jnp.bfloat16
  assert norm_error(got, encode(t5[1], dtype=jnp.bfloat16)) < 5e-3
