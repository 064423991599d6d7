"""The recipe of the multi-view prior at a tiny size: data, the loss, resumption, and the written prior."""
import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sds_jax.diffusion.schedules import schedule_from_config
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading.checkpoint import abstract_params
from sds_jax.shapeworld import (
    fitting, multiview_card, multiview_dataset, multiview_recipe, recipe, score_multiview_prior, tokenizer,
    train_multiview_prior, train_prior)

SMALL = dict(steps=4, batch_size=2, warmup=1, log_every=1, save_every=2, sheet_every=100, seed=3)


@pytest.fixture(autouse=True, scope="module")
def small_batches():
  """Renders 4 scenes a call: one scene is padded to 4 and not to 16."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(multiview_dataset, "BATCH", 4)
    yield


@pytest.fixture
def groups(tmp_path):
  """images.npz of 4 scenes of noise with captions."""
  rng, path = np.random.default_rng(0), tmp_path / "groups.npz"
  np.savez(path, images=rng.integers(0, 256, (4, 4, 64, 64, 4), np.uint8), captions=np.full((4, 4), "a red cube"),
           cameras=rng.normal(size=(4, 4, 16)).astype(np.float32))
  return path


def test_the_views_of_a_scene(tmp_path):
  with np.load(multiview_dataset.make_dataset(12, 0, tmp_path / "images.npz")) as stored:
    data = {name: stored[name] for name in stored.files}
  assert data["images"].shape == (12, 4, 64, 64, 4) and data["captions"].shape == (12, 4)
  assert data["images"].dtype == np.uint8 and data["cameras"].shape == (12, 4, 16)
  direction = data["cameras"][..., :3]
  azimuth = np.unwrap(np.arctan2(direction[..., 1], direction[..., 0]))
  low = direction[..., 2].max(1) < 0.8  # the cameras' jitter turns the azimuth far near the pole
  assert low.sum() > 4 and np.abs(np.degrees(np.diff(azimuth[low])) - 90).max() < 8
  assert np.ptp(direction[..., 2], axis=1).max() < 0.1
  for captions in data["captions"]:
    objects = {caption.split(",")[0] for caption in captions}
    assert len(objects) == 1 and len({"," in caption for caption in captions}) == 1
  assert any("," in caption for caption in data["captions"].ravel())
  # A colour of the caption covers the object's opaque pixels in every view.
  opaque = (data["images"][..., 3] == 255).sum((2, 3))
  assert opaque.min() > 20
  again = multiview_dataset.make_examples(0, [5])
  np.testing.assert_array_equal(again["images"][0], data["images"][5])


@pytest.fixture
def vocabulary(tmp_path):
  """The size of the vocabulary and the special ids."""
  (tmp_path / "tokens").mkdir()
  tokenizer.write_tokenizer(tmp_path / "tokens")
  return (len(json.loads((tmp_path / "tokens" / "vocab.json").read_text())),
          tokenizer.special_ids(tmp_path / "tokens"))


@pytest.fixture
def text_params(tiny_recipe, vocabulary):
  """Random parameters of a text prior of the recipe."""
  rng, networks = np.random.default_rng(0), train_prior.make_networks(*vocabulary)
  return {name: traverse_util.unflatten_dict({
    path: (rng.normal(size=leaf.shape) / 4).astype(np.float32) for path, leaf in abstract_params(network).items()})
          for name, network in zip(("unet", "text_encoder"), networks)}


def test_the_loss_has_a_gradient(text_params, vocabulary):
  """Traces it, with the networks of the recipe; compiling it takes long."""
  loss = train_multiview_prior.make_loss(train_multiview_prior.make_networks(*vocabulary),
                                         schedule_from_config(recipe.SCHEDULER), multiview_recipe.TRAINING,
                                         np.zeros(20, np.int32))
  batch = dict(images=np.zeros((2, 4, 64, 64, 4), np.uint8), cameras=np.zeros((2, 4, 16), np.float32),
               ids=np.zeros((2, 4, 20), np.int32))
  value, gradient = jax.eval_shape(jax.value_and_grad(loss), text_params, batch, jax.random.key(0))
  assert value.shape == () and jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, text_params)


def test_a_run_and_its_resumption(groups, text_params, vocabulary, flat_optimizer, tmp_path, monkeypatch, capsys):
  """The networks of the steps are linear in the last bias, those of the files are the recipe's."""
  table = {f"{name}_all": 0.5 for name in ("colour", "shape", "iou", "whole")}
  monkeypatch.setattr(score_multiview_prior, "score", lambda *args, **options: (table, np.full((64, 64, 64, 3), 0.5)))
  monkeypatch.setattr(train_multiview_prior, "make_networks", lambda *args: (
    SimpleNamespace(apply=lambda variables, z, *inputs, class_labels: (
      z[..., :48] * variables["params"]["conv_out"]["bias"][None, None, None])),
    SimpleNamespace(apply=lambda variables, ids: jnp.zeros((*ids.shape, 8)))))
  train_prior.write_prior(tmp_path / "text", text_params, *vocabulary)
  made, make_step = [], fitting.make_step

  def once(*args):  # equal runs have equal steps, and a step takes long to compile
    made.append(made[0] if made else make_step(*args))
    return made[0]

  monkeypatch.setattr(fitting, "make_step", once)

  def train(out, steps=4):
    out.mkdir(exist_ok=True)
    if not (out / "images.npz").exists():
      (out / "images.npz").symlink_to(groups)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
      return train_multiview_prior.train(out, **{**SMALL, "steps": steps, "init": tmp_path / "text"})

  whole = train(tmp_path / "run")
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(np.isfinite(line["loss"]) for line in lines)
  prior, read = prior_lib.build(whole)
  assert (prior.views, prior.image_size, prior.camera_dim) == (4, 64, 16)
  text = (whole / "README.md").read_text()
  assert "--batch_size=2" in text and "| all | 50.0% | 50.0% | 0.500 | 50.0% |" in text
  assert "4" in os.listdir(tmp_path / "run" / "checkpoints")
  train(tmp_path / "run")
  assert "going on from step 4" in capsys.readouterr().out


def test_the_loss_is_of_whole_objects(tiny_recipe):
  """Text and camera are dropped, and t is drawn, for all views of an object."""
  asked = {}

  class Unet:
    def apply(self, params, z, t, text, class_labels):
      asked.update(t=t, camera=class_labels, z=z)
      return jnp.zeros((*z.shape[:3], 48))

  class Text:
    def apply(self, params, ids):
      asked["ids"] = ids
      return jnp.zeros((*ids.shape, 8))

  settings = multiview_recipe.TRAINING | dict(drop_text=0.5, drop_camera=0.5)
  loss = train_multiview_prior.make_loss((Unet(), Text()), schedule_from_config(recipe.SCHEDULER), settings,
                                         np.zeros(5, np.int32))
  batch = dict(images=np.zeros((16, 4, 64, 64, 4), np.uint8), cameras=np.ones((16, 4, 16), np.float32),
               ids=np.ones((16, 4, 5), np.int32))
  value, asked = jax.jit(lambda *args: (loss(dict(unet={}, text_encoder={}), *args), asked))(batch, jax.random.key(0))
  assert np.isfinite(value)
  for name in ("t", "camera", "ids"):
    groups = np.asarray(asked[name]).reshape(16, 4, -1)
    assert (groups == groups[:, :1]).all() and len(np.unique(groups[:, 0], axis=0)) > 1, name


def test_the_card_of_an_empty_group(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(json.dumps(dict(step=1, loss=0.5, seconds=60.0)) + "\n")
  table = {f"{name}_{group}": 0.25 for name in ("colour", "shape", "iou", "whole") for group in ("all", "front")}
  text = multiview_card._card(tmp_path, multiview_recipe.TRAINING, 0, None, 50, table)
  assert "| front | 25.0% | 25.0% | 0.250 | 25.0% |" in text and "the shipped text prior" in text
