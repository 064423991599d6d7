"""The recipe of the shipped prior at a tiny size: training learns, resumes after a kill, and writes a prior."""
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading import checkpoint
from sds_jax.shapeworld import captions, card, fitting, recipe, tokenizer, train_prior

STEPS = dict(steps=4, batch_size=2, warmup=1, log_every=1, save_every=2, sheet_every=100, seed=3)


def random_params(networks):
  """Draws parameters in the layout of `init_params` by numpy; XLA compiles the init of a network for half a minute."""
  rng, trees = np.random.default_rng(0), []
  for network in networks:
    shapes = checkpoint.abstract_params(network)
    trees.append(traverse_util.unflatten_dict({
      path: ((path[-1] == "scale") + rng.normal(size=leaf.shape) / max(leaf.size, 1) ** 0.5).astype(np.float32)
      for path, leaf in shapes.items()}))
  return jax.device_put(dict(zip(("unet", "text_encoder"), trees)))  # `jnp.asarray` compiles something for each shape


@pytest.fixture
def train(images, tiny_recipe, flat_optimizer, monkeypatch):
  """Returns (folder) -> the folder of the prior, with made-up scores, because scoring is slow."""
  table = {f"{name}_{group}": 0.5 for name in ("colour", "shape", "iou")
           for group in ("all", "seen", "never_seen", "single", "stacked")}
  monkeypatch.setattr(card.score_prior, "score", lambda *args, **options: (table, np.full((32, 64, 64, 3), 0.5)))
  monkeypatch.setattr(train_prior, "init_params", lambda key, networks: random_params(networks))

  def run(out, **options):
    out.mkdir(exist_ok=True)
    if not (out / "images.npz").exists():
      shutil.copyfile(images, out / "images.npz")
    with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
      return train_prior.train(out, **{**STEPS, **options})
  return run


def weights(folder):
  return {name: load_file(folder / name) for name in ("unet/diffusion_pytorch_model.safetensors",
                                                      "text_encoder/model.safetensors")}


def test_an_uninterrupted_run_and_a_killed_run(train, images, tmp_path, monkeypatch, capsys):
  made, make_step = [], fitting.make_step

  def once(*args):  # equal runs have equal steps, and a step takes long to compile
    made.append(made[0] if made else make_step(*args))
    return made[0]

  monkeypatch.setattr(fitting, "make_step", once)
  whole = train(tmp_path / "whole")
  lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == list(range(1, 5))
  assert all(np.isfinite(line["loss"]) for line in lines)
  assert falls_on_one_batch(made[0], vocabulary(tmp_path), images)

  prior, params = prior_lib.build(whole)
  assert (prior.image_size, prior.x_shape, prior.camera_dim) == (64, (16, 16, 48), 16)
  assert prior.vocabulary == captions.WORDS
  cond = dict(prior.embed(["a red cube"]), camera=jnp.ones((1, 16)))
  # Its numbers are those of the steps above, finite; a whole program for them takes long to compile.
  noise = jax.eval_shape(prior.denoise, params, jnp.ones((1, 16, 16, 48)), jnp.asarray([500]), cond)
  assert noise.shape == (1, 16, 16, 48) and np.isfinite(cond["text"]).all()
  text = (whole / "README.md").read_text()
  assert "--steps=4 --batch_size=2" in text and "--seed=3" in text and "| never seen | 50.0% | 50.0% | 0.500 |" in text
  assert all((whole / name).exists() for name in ("scores.json", "samples.png", "metrics.jsonl"))

  class Killed(Exception):
    pass

  feed = fitting.batches

  def until_killed(*args):
    for number, batch in enumerate(feed(*args)):
      if number == 3:
        raise Killed
      yield batch

  monkeypatch.setattr(fitting, "batches", until_killed)
  with pytest.raises(Killed):
    train(tmp_path / "killed")
  assert "2" in os.listdir(tmp_path / "killed" / "checkpoints") and not (tmp_path / "killed" / "prior").exists()
  monkeypatch.setattr(fitting, "batches", feed)
  resumed = train(tmp_path / "killed")
  assert "going on from step 2" in capsys.readouterr().out
  lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == list(range(1, 5))
  for name, expected in weights(whole).items():
    stored = weights(resumed)[name]
    assert all(stored[key].tobytes() == value.tobytes() for key, value in expected.items()), name


def test_a_run_from_the_weights_of_another_prior(train, tiny_recipe, tmp_path, monkeypatch):
  """Takes no step: weights pass through unchanged, the card names the source, other networks are refused."""
  networks = train_prior.make_networks(*vocabulary(tmp_path))
  train_prior.write_prior(tmp_path / "before", random_params(networks), *vocabulary(tmp_path))
  with pytest.raises(checkpoint.CheckpointError, match="nowhere"):
    train(tmp_path / "run", init=tmp_path / "nowhere")
  assert os.listdir(tmp_path / "run") == ["images.npz"]  # nothing in the way of the corrected command
  monkeypatch.setattr(train_prior, "init_params", None)
  monkeypatch.setattr(fitting, "make_step", lambda *args: None)
  monkeypatch.setattr(fitting, "fit", lambda out, state, *args, **options: state)
  monkeypatch.setattr(card, "_card", lambda run, settings, seed, init, num, table: f"from {init}")
  (tmp_path / "run" / "metrics.jsonl").write_text("")
  after = train(tmp_path / "run", init=tmp_path / "before")
  for name, expected in weights(tmp_path / "before").items():
    stored = weights(after)[name]
    assert all(stored[key].tobytes() == value.tobytes() for key, value in expected.items()), name
  assert (after / "README.md").read_text() == f"from {tmp_path / 'before'}"
  with pytest.raises(ValueError, match="init='.*before', but the run in .* was begun with|init=None, but the run in"):
    train(tmp_path / "run")
  monkeypatch.setitem(tiny_recipe.UNET, "block_out_channels", [12])
  with pytest.raises(ValueError, match="before/unet is not the network of sds_jax/shapeworld/recipe.py"):
    train(tmp_path / "other", init=tmp_path / "before")


def vocabulary(folder):
  """Returns the size of the vocabulary and the special ids."""
  tokenizer.write_tokenizer(folder / "tokenizer")
  vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text())
  return len(vocab), tokenizer.special_ids(folder / "tokenizer")


def falls_on_one_batch(step, vocabulary_and_ids, images):
  """Tells whether the loss falls over four steps with the same images and the same noise."""
  settings = {**recipe.TRAINING, **STEPS}
  with jax.numpy_dtype_promotion("standard"), np.load(images) as data:
    state = fitting.new_state(random_params(train_prior.make_networks(*vocabulary_and_ids)),
                              fitting.make_optimizer(STEPS["steps"], settings))
    batch = dict(images=data["images"][:2], cameras=data["cameras"][:2], ids=np.full((2, 20), 7, np.int32))
    losses = []
    for _ in range(STEPS["steps"]):
      state, metrics = step(state.replace(step=jax.device_put(jnp.int32(0), jax.devices()[0])), batch,
                            jax.random.key(0))
      losses.append(float(metrics["loss"]))
  return losses[-1] < 0.99 * losses[0] and max(losses[1:]) <= losses[0]


def test_initial_parameters_have_the_shapes_of_the_networks(tiny_recipe):
  networks = train_prior.make_networks(600, dict(bos_token_id=0, eos_token_id=1, pad_token_id=1))
  fresh = jax.eval_shape(lambda key: train_prior.init_params(key, networks), jax.random.key(0))
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), random_params(networks))


def test_no_held_out_pair_is_ever_shown(images):
  with np.load(images) as data:
    texts = [str(text) for text in data["captions"]]
  assert len(texts) == 32 and len(set(texts)) > 16
  assert not any(captions.is_held_out(captions.parse(text)) for text in texts)
  many = [captions.sample_spec(np.random.default_rng([5, i])) for i in range(2000)]
  assert not any(captions.is_held_out(spec) for spec in many)
  shown = {part for spec in many for part in spec.parts}
  assert len(shown) == 88 - len(captions.HELD_OUT)  # all other pairs occur
