r"""Trains the multi-view prior, on a single machine, from the shipped text prior.

    python -m sds_jax.shapeworld.train_multiview_prior --out=multiview_prior_run

renders the training images unless `<out>/images.npz` exists, and trains the U-Net and its text encoder together. The
folder `<out>` receives checkpoints, metrics and the prior, as with `train_prior`. With `--init=FOLDER` training starts
from the weights of another text or multi-view prior of the recipe.
"""
from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.diffusion import schedules
from sds_jax.diffusion.schedules import add_noise
from sds_jax.priors import prior as prior_lib, sources, spaces
from sds_jax.priors.loading import tokenizers
from sds_jax.priors.networks.clip import CLIPTextModel
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.shapeworld import (
    dataset, fitting, multiview_card, multiview_dataset, multiview_recipe, recipe, score_multiview_prior, score_prior,
    tokenizer, train_prior)
from sds_jax.shapeworld.multiview_recipe import VIEWS
from sds_jax.types import Array, Params, Schedule
from sds_jax.views.cameras import RAY_DIM


def make_networks(vocab_size: int, special: dict[str, int]) -> tuple[UNet2DConditionModel, CLIPTextModel]:
  """Builds the U-Net, which looks at VIEWS views together, and the text encoder; arguments as in `train_prior`."""
  unet, text = train_prior.make_networks(vocab_size, special)
  return unet.clone(views=VIEWS), text


def draw_backgrounds(key: Array, objects: int) -> Array:
  """Draws plain backgrounds [objects, VIEWS, 3] in [0, 1]; consumes `key`.

  Half of the objects have one background in all views, the other half one a view.
  """
  key_colour, key_shared = jax.random.split(key)
  colours = jax.vmap(dataset.sample_background)(jax.random.split(key_colour, objects * VIEWS))
  colours = colours.reshape(objects, VIEWS, 3)
  shared = jax.random.bernoulli(key_shared, 0.5, (objects, 1, 1))
  return jnp.where(shared, colours[:, :1], colours)


def make_loss(networks: tuple[UNet2DConditionModel, CLIPTextModel], schedule: Schedule, settings: dict[str, Any],
              null_ids: np.ndarray) -> fitting.LossFn:
  """Builds the loss of a batch of G objects.

  The batch holds images uint8 [G, VIEWS, 64, 64, 4] and cameras [G, VIEWS, D] of `multiview_dataset`, and ids
  [G, VIEWS, L].

  Args:
    networks: result of `make_networks`.
    schedule: of the noise.
    settings: of the recipe; noise_power, drop_text, drop_camera and max_loss_weight are read here.
    null_ids: [L] token ids of the empty prompt.
  """
  unet_model, text_model = networks

  def flat(leaf: Array) -> Array:
    return leaf.reshape(-1, *leaf.shape[2:])

  def loss_fn(params: Params, batch: fitting.Batch, key: Array) -> Array:
    k_background, k_t, k_eps, k_text, k_camera = jax.random.split(key, 5)
    objects = len(batch["images"])
    images = batch["images"].astype(jnp.float32) / 255.0
    behind = draw_backgrounds(k_background, objects)[:, :, None, None]
    # The colours are premultiplied, so the background is added in proportion to the transparency.
    images = flat(images[..., :3] + (1.0 - images[..., 3:]) * behind)
    x = spaces.space_to_depth(2.0 * images - 1.0, recipe.PIXEL_UNSHUFFLE)
    t = jnp.repeat(fitting.draw_times(k_t, objects, schedule, settings["noise_power"]), VIEWS)
    z_t = add_noise(schedule, x, jax.random.normal(k_eps, x.shape), t)
    # Dropped for whole objects: a run has the prompt and the cameras of all views, or of none.
    no_text = jax.random.bernoulli(k_text, settings["drop_text"], (objects, 1, 1))
    no_camera = jax.random.bernoulli(k_camera, settings["drop_camera"], (objects, 1, 1))
    ids = jnp.where(no_text, jnp.asarray(null_ids)[None, None], batch["ids"])
    text = text_model.apply({"params": params["text_encoder"]}, flat(ids))
    camera = flat(jnp.where(no_camera, 0.0, batch["cameras"]))
    x_hat = unet_model.apply({"params": params["unet"]}, prior_lib.unet_input(z_t, camera, RAY_DIM), t, text,
                             class_labels=camera)
    return fitting.clean_image_loss(x_hat, x, schedule, t, settings["max_loss_weight"])

  return loss_fn


def read_data(out: pathlib.Path, settings: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
  """Returns the training data, with token ids for captions; renders the images unless they exist."""
  images = out / "images.npz"
  if not images.exists():
    multiview_dataset.make_dataset(settings["num_images"], seed, images)
  with np.load(images) as stored:
    data = {name: stored[name] for name in ("images", "captions", "cameras")}
  written = data.pop("captions")
  # Captions repeat, so each distinct caption is tokenized once.
  unique, inverse = np.unique(written, return_inverse=True)
  tokens = tokenizers.load_tokenizer(out / "tokenizer")
  data["ids"] = np.asarray(tokens([str(c) for c in unique]), np.int32)[inverse.reshape(written.shape)]
  return data


def train(out: pathlib.Path, *, seed: int = 0, init: pathlib.Path | None = None, log_every: int = 50,
          save_every: int = 500, sheet_every: int = 1000, **overrides: Any) -> pathlib.Path:
  """Trains the multi-view prior and returns its folder.

  Training starts from the newest checkpoint in `out`, else from the prior `init`, else from the shipped text prior.

  Args:
    out: folder of the run.
    seed: of images and noise.
    init: folder of a text or multi-view prior of the recipe, or None.
    log_every, save_every, sheet_every: steps between records of the loss, checkpoints and sample sheets.
    **overrides: settings of `multiview_recipe.TRAINING`.

  Raises:
    CheckpointError: `init` is incomplete or damaged.
    ValueError: `init` is of another recipe, or the run in `out` has other settings.
  """
  settings = {**multiview_recipe.TRAINING, **overrides}
  # Read before anything is written, so a mistake in --init leaves no trace in `out`. A restored checkpoint replaces the
  # parameters, so a resumed run needs only their structure.
  params = train_prior.read_params(init or sources.shipped_folder())
  out.mkdir(parents=True, exist_ok=True)
  fitting.check_same_settings(out / "settings.json", {
      **settings, "seed": seed, "init": str(init) if init else None, "weights": multiview_dataset.KIND_WEIGHTS})
  tokenizer.write_tokenizer(out / "tokenizer")
  data = read_data(out, settings, seed)
  null_ids = np.asarray(tokenizers.load_tokenizer(out / "tokenizer")([""]), np.int32)[0]
  vocab_size = len(json.loads((out / "tokenizer" / "vocab.json").read_text()))
  special = tokenizer.special_ids(out / "tokenizer")

  networks = make_networks(vocab_size, special)
  optimizer = fitting.make_optimizer(settings["steps"], settings)
  loss_fn = make_loss(networks, schedules.schedule_from_config(recipe.SCHEDULER), settings, null_ids)

  def export(state: fitting.PriorTrainState) -> None:
    train_prior.write_prior(out / "prior", jax.device_get(state.ema), vocab_size, special, views=VIEWS)

  def export_with_sheet(state: fitting.PriorTrainState) -> None:
    export(state)
    images = score_multiview_prior.sample(*prior_lib.build(out / "prior"), num=8, seed=seed)[0]
    score_prior.write_sheet(out / f"samples_{int(state.step):06d}.png", images, columns=2 * VIEWS)

  state = fitting.fit(out, fitting.new_state(params, optimizer),
                      fitting.make_step(loss_fn, optimizer, settings["ema_decay"]), data, settings, seed,
                      on_sheet=export_with_sheet, log_every=log_every, save_every=save_every, sheet_every=sheet_every)
  # A run that resumes after its last step reaches this line without an export.
  export(state)
  print("scoring the prior for its card ...")
  multiview_card.write_card(out, settings, seed, init)
  return out / "prior"


def main() -> None:
  """Runs the command line of the recipe."""
  fitting.run_recipe(train, "Train the multi-view prior of ShapeWorld.", multiview_recipe.TRAINING,
                     "multiview_prior_run")


if __name__ == "__main__":
  main()
