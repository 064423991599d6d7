"""The recipe of the view prior at a tiny size: pairs, null condition, initial weights, and the written prior."""
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from sds_jax.diffusion import schedules
from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading import checkpoint
from sds_jax.shapeworld import fitting, score_view_prior, train_view_prior, view_card, view_dataset, view_recipe

SETTINGS = view_recipe.TRAINING
RATE = 0.01
"""Learning rate of gradient descent."""


@pytest.fixture(scope="module")
def examples():
  """Five scenes of noise in the form of `view_dataset`: colours times opacity, and nothing in the corner."""
  rng, shape = np.random.default_rng(0), (5, view_dataset.VIEWS, 64, 64, 1)
  alpha = rng.uniform(size=shape)
  images = np.concatenate([alpha * rng.uniform(size=(*shape[:-1], 3)), alpha], axis=-1)
  images[:, :, 0, 0] = 0
  return dict(images=(255 * images).astype(np.uint8),
              angles=rng.uniform(-0.1, 1.2, (5, view_dataset.VIEWS, 2)).astype(np.float32))


@pytest.fixture(scope="module")
def step(tiny_view_recipe):
  """The step of the recipe but for plain gradient descent; `batch["settings"]` are changes of settings.

  So that one program serves all tests.
  """
  networks, schedule = train_view_prior.make_networks(), schedules.schedule_from_config(view_recipe.SCHEDULER)

  def loss(params, batch, key):
    return train_view_prior.make_loss(networks, schedule, SETTINGS | batch["settings"])(params, batch, key)

  compiled = fitting.make_step(loss, optax.sgd(RATE), 0.9)

  def run(*args):
    with jax.numpy_dtype_promotion("standard"):  # as in a run; another promotion is another program
      return compiled(*args)

  return run


def random_params():
  rng = np.random.default_rng(0)
  return jax.device_put({name: traverse_util.unflatten_dict({  # `jnp.asarray` compiles something for each shape
      path: ((path[-1] == "scale") + rng.normal(size=leaf.shape) / max(leaf.size, 1) ** 0.5).astype(np.float32)
      for path, leaf in checkpoint.abstract_params(network).items()})
          for name, network in train_view_prior.make_networks().items()})


def test_pairs_are_two_views_of_a_scene(examples):
  """Identifies photo, view and pose among the views of the scene; the photo is on white."""
  batch = {name: jnp.asarray(examples[name]) for name in ("images", "angles")}
  photo, view, pose, elevation = map(np.asarray, jax.jit(train_view_prior.draw_pairs)(batch, jax.random.key(2)))
  on_white = examples["images"][..., :3] / 255.0 + 1.0 - examples["images"][..., 3:] / 255.0
  for i in range(len(photo)):
    p = int(np.abs(on_white[i] - photo[i]).mean((1, 2, 3)).argmin())
    np.testing.assert_allclose(photo[i], on_white[i, p], atol=1e-5)
    assert p < view_dataset.PHOTOS and np.isclose(elevation[i], examples["angles"][i, p, 1])
    background = view[i, 0, 0]
    alpha = examples["images"][i, ..., 3:] / 255.0
    shown = examples["images"][i, ..., :3] / 255.0 + (1.0 - alpha) * background
    q = int(np.abs(shown - view[i]).mean((1, 2, 3)).argmin())
    np.testing.assert_allclose(view[i], shown[q], atol=1e-5)
    assert q != p
    (a, e), (from_a, from_e) = examples["angles"][i, q], examples["angles"][i, p]
    np.testing.assert_allclose(pose[i], [from_e - e, np.sin(a - from_a), np.cos(a - from_a), np.pi / 2 - from_e],
                               atol=1e-5)


def test_a_dropped_condition_has_no_gradient(step, examples):
  """Drops all conditions: the projection has no gradient, the encoder only the gradient of the elevation."""
  def moved(drop, elevation_weight):
    """Tells which networks a step of gradient descent changes."""
    settings = dict(drop_condition=jnp.float32(drop), elevation_weight=jnp.float32(elevation_weight))
    before = random_params()
    state, _ = step(fitting.new_state(random_params(), optax.sgd(RATE)),
                    dict({name: examples[name][:2] for name in ("images", "angles")}, settings=settings),
                    jax.random.key(0))
    return {name for name, tree in state.params.items()
            if not jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, before[name]))}

  assert moved(1.0, SETTINGS["elevation_weight"]) == {"unet", "image_encoder", "elevation_head"}
  assert moved(0.0, 0.0) == {"unet", "image_encoder", "cc_projection"}


def test_training_starts_from_the_text_prior(tiny_view_recipe):
  """Checks zero weights for the photo channels; all other weights of the U-Net equal the text prior."""
  networks = train_view_prior.make_networks()
  rng = np.random.default_rng(1)
  text_unet = traverse_util.unflatten_dict({
      path: rng.normal(size=(*leaf.shape[:2], 66, leaf.shape[3]) if path == ("conv_in", "kernel")
                       else leaf.shape).astype(np.float32)
      for path, leaf in checkpoint.abstract_params(networks["unet"]).items()})
  params = jax.jit(lambda key, unet: train_view_prior.init_params(key, networks, unet))(jax.random.key(0), text_unet)
  assert checkpoint.abstract_params(networks["unet"]) == {
      path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
      for path, leaf in traverse_util.flatten_dict(params["unet"]).items()}
  x = rng.normal(size=(3, 3, 114)).astype(np.float32)
  whole = np.tensordot(x, np.asarray(params["unet"]["conv_in"]["kernel"]), axes=((0, 1, 2), (0, 1, 2)))
  without = np.tensordot(np.delete(x, range(48, 96), axis=-1), np.asarray(text_unet["conv_in"]["kernel"]),
                         axes=((0, 1, 2), (0, 1, 2)))
  np.testing.assert_allclose(whole, without, rtol=1e-4, atol=1e-4)


def test_a_run_writes_a_prior_and_resumes(step, examples, tmp_path, monkeypatch, capsys):
  table = {f"{name}_all": 0.5 for name in ("iou", "colour_error", "elevation_error_deg")}
  monkeypatch.setattr(view_card.score_view_prior, "score",
                      lambda *args, **options: (table, np.full((6, 64, 192, 3), 0.5)))
  monkeypatch.setattr(train_view_prior, "init_params", lambda *args: random_params())
  write_prior = train_view_prior.write_prior

  def make_step(settings, optimizer, decay):
    used = {name: jnp.float32(settings[name]) for name in ("drop_condition", "elevation_weight")}
    return lambda state, batch, key: step(state, dict(batch, settings=used), key)

  monkeypatch.setattr(train_view_prior, "make_loss", lambda networks, schedule, settings: settings)
  monkeypatch.setattr(fitting, "make_step", make_step)
  monkeypatch.setattr(fitting, "make_optimizer", lambda *args: optax.sgd(RATE))
  np.savez(tmp_path / "images.npz", **examples)
  options = dict(steps=4, batch_size=2, warmup=1, log_every=1, save_every=2, sheet_every=3, seed=3)
  with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
    monkeypatch.setattr(train_view_prior, "write_prior", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # as if killed at the third step
      train_view_prior.train(tmp_path, **options)
    monkeypatch.setattr(train_view_prior, "write_prior", write_prior)
    folder = train_view_prior.train(tmp_path, **options)
  assert "going on from step 2" in capsys.readouterr().out
  assert "| all | 0.500 | 0.500 | 0.5 |" in (folder / "README.md").read_text(encoding="utf-8")
  prior, params = prior_lib.build(folder)
  encoded = jax.jit(prior.photo.encode)(jnp.ones((64, 64, 3)))
  assert encoded["tokens"].shape == (65, 8) and np.isfinite(encoded["elevation"])

  def denoise(params, encoded, pose):
    cond = prior.photo.conditions(params, encoded, pose)
    return prior.denoise(params, jnp.zeros((1, *prior.x_shape)), jnp.array([5]), cond)

  # Its numbers are those of the steps, finite; a whole program for them takes long to compile.
  assert jax.eval_shape(denoise, params, encoded, jnp.array([[0.1, 0.0, 1.0, 1.2]])).shape == (1, *prior.x_shape)
  losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert len(losses) == 4 and np.isfinite(losses).all()
  again = train_view_prior.read_params(folder)
  assert {name: jax.tree.structure(tree) for name, tree in again.items()} == {
      name: jax.tree.structure(tree) for name, tree in random_params().items()}
  with pytest.raises(ValueError, match="begun with"), jax.numpy_dtype_promotion("standard"):
    train_view_prior.train(tmp_path, **dict(options, batch_size=4))
  assert fitting.has_checkpoint(tmp_path)


def test_scores_refuse_priors_of_another_image_size(tiny_view_prior, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["score", f"--prior={tiny_view_prior}", f"--out={tmp_path / 'scores'}"])
  with pytest.raises(SystemExit) as error:
    score_view_prior.main()
  assert error.value.code == 2 and "images of 16 pixels a side" in capsys.readouterr().err
  assert not (tmp_path / "scores").exists()
