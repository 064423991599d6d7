"""T5's encoder and tokenizer against transformers, by way of the folders: theirs read by us, ours read by them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.priors.loading import checkpoint, t5_stream
from sds_jax.priors.loading.t5_tokenizer import load_t5_tokenizer
from sds_jax.priors.networks.t5_bias import position_buckets

BASE = dict(vocab_size=50, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=3, relative_attention_num_buckets=12,
            relative_attention_max_distance=30, layer_norm_epsilon=1e-4)
RNG = np.random.default_rng(0)
IDS = RNG.integers(2, 50, (3, 41))  # longer than the largest distance
MASK = np.ones((3, 41), np.int64)
MASK[1, 20:], MASK[2, 1:] = 0, 0


def make(torch, transformers, randomize, kind="T5EncoderModel", **config):
  return randomize(torch, getattr(transformers, kind)(transformers.T5Config(**BASE, **config)))


def their_states(torch, model, mask=MASK):
  with torch.no_grad():
    mask = None if mask is None else torch.from_numpy(mask)
    return model(torch.from_numpy(IDS), attention_mask=mask).last_hidden_state.float().numpy()


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (12, 30), (8, 20)])
def test_position_buckets(torch, transformers, buckets, max_distance):
  from transformers.models.t5.modeling_t5 import T5Attention
  length = 3 * max_distance
  offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
  expected = T5Attention._relative_position_bucket(offset, True, buckets, max_distance)
  np.testing.assert_array_equal(position_buckets(length, buckets, max_distance), expected.numpy())


@pytest.mark.parametrize("proj", ["gated-gelu", "relu"])
def test_encoder(torch, transformers, randomize, relative_error, quick_jit, tmp_path, proj):
  theirs = make(torch, transformers, randomize, feed_forward_proj=proj)
  theirs.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
  assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 3
  ours, params = checkpoint.read_component(tmp_path / "theirs", "t5")

  expected = their_states(torch, theirs)
  assert relative_error(quick_jit(ours.apply, {"params": params}, IDS, MASK), expected) < 1e-5
  assert relative_error(quick_jit(ours.apply, {"params": params}, IDS), their_states(torch, theirs, None)) < 1e-5
  model, read = t5_stream.open_parts(tmp_path / "theirs", jnp.float32)
  got = t5_stream.encode_in_layers(read, model, jnp.asarray(IDS), jnp.asarray(MASK))
  assert relative_error(got, expected) < 1e-5

  half = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), params)
  got = np.asarray(quick_jit(ours.clone(dtype=jnp.bfloat16).apply, {"params": half}, IDS, MASK), np.float32)
  assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 2e-2

  checkpoint.write_component(tmp_path / "ours", "t5", theirs.config.to_dict(), params, dtype=jnp.float32)
  reopened, report = transformers.T5EncoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  state = theirs.state_dict()
  assert all(torch.equal(state[name], value) for name, value in reopened.state_dict().items())


def test_encoder_out_of_a_whole_model(torch, transformers, randomize, relative_error, quick_jit, tmp_path):
  whole = make(torch, transformers, randomize, "T5ForConditionalGeneration", tie_word_embeddings=False)
  whole.save_pretrained(tmp_path)
  ours, params = checkpoint.read_component(tmp_path, "t5")
  got = quick_jit(ours.apply, {"params": params}, IDS, MASK)
  assert relative_error(got, their_states(torch, whole.get_encoder())) < 1e-5


def test_tokenizer(transformers, tmp_path):
  """Their folder, saved by them; captions as the pipeline of DeepFloyd IF prepares them."""
  pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "\u2581red", "\u2581cube", *"abcdefghijklmnopqrstuvwxyz.,!"]
  theirs = transformers.T5Tokenizer(vocab=[(piece, -0.1 * i) for i, piece in enumerate(pieces)], extra_ids=3)
  theirs.save_pretrained(tmp_path)
  texts = ["a red cube", "", "  A DSLR photo of a Red Cube,   4k!\n", "red</s>cube", "two\u00a0words \u732b", "<pad> a",
           "a red cube " * 30]
  with pytest.warns(UserWarning, match="tokens only; cut off"):
    ids, mask = load_t5_tokenizer(tmp_path)(texts)
  expected = theirs([text.lower().strip() for text in texts], padding="max_length", max_length=77, truncation=True)
  np.testing.assert_array_equal(ids, expected["input_ids"])
  np.testing.assert_array_equal(mask, expected["attention_mask"])


def test_tokenizer_out_of_spiece_model(transformers, sentencepiece, tmp_path):
  """As in DeepFloyd's folders; ids of transformers and of SentencePiece itself on random strings."""
  rng = np.random.default_rng(0)
  words = ["".join(rng.choice(list("abcdeghinorst\u00e9\u00fc"), n)) for n in rng.integers(1, 9, 300)]
  (tmp_path / "corpus.txt").write_text("\n".join(" ".join(rng.choice(words, 8)) for _ in range(400)), encoding="utf-8")
  sentencepiece.SentencePieceTrainer.train(
    input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=200, minloglevel=2,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1)
  theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))

  letters = [*"abcdeghinorst   ", *"xyz.,!?'\"-0123(", *"\u00e9\u00fc\u00df\u732b\ufb01\u2460\u0301\u00a0\t\n\u0130"]
  texts = [" ".join(rng.choice(words, n)) for n in rng.integers(0, 9, 300)] + [
    "".join(rng.choice(letters, n)) for n in rng.integers(0, 30, 700)]
  ours = load_t5_tokenizer(tmp_path, lower=False)
  ids, mask = ours(texts)
  expected = theirs(texts, padding="max_length", max_length=77, truncation=True)
  np.testing.assert_array_equal(ids, expected["input_ids"])
  np.testing.assert_array_equal(mask, expected["attention_mask"])
  for text, row, n in zip(texts, ids, mask.sum(1)):  # they differ on accents behind what is normalized, a space say
    assert "\u0301" in text or row[:n].tolist() == pieces.encode(text) + [1]
  special = ["a</s>b <extra_id_3>", "<pad>"]
  np.testing.assert_array_equal(ours(special)[0], theirs(special, padding="max_length", max_length=77)["input_ids"])
  long = ["a " * 90]
  with pytest.warns(UserWarning, match="sees the first 76 tokens only; cut off"):
    np.testing.assert_array_equal(ours(long)[0], theirs(long, max_length=77, truncation=True)["input_ids"])
