r"""Trains the view prior shipped with the package, on a single machine, from the shipped text prior.

    python -m sds_jax.shapeworld.train_view_prior --out=view_prior_run

renders the training images unless `<out>/images.npz` exists, and trains the U-Net, the image encoder, the projection
and the elevation head together. The folder `<out>` receives checkpoints, metrics and the prior, as with `train_prior`.
With `--init=FOLDER` training starts from the weights of a view prior of the same recipe.
"""
from __future__ import annotations

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.diffusion import schedules
from sds_jax.diffusion.schedules import add_noise
from sds_jax.priors import sources, spaces
from sds_jax.priors.loading import checkpoint
from sds_jax.priors.loading.files import write_json
from sds_jax.priors.networks.clip_vision import CLIPVisionModelWithProjection
from sds_jax.priors.networks.pose_layers import CCProjection, ElevationHead, with_pose
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.priors.prior import unet_input
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import dataset, fitting, recipe, view_card, view_dataset, view_recipe
from sds_jax.types import Array, Params, Schedule
from sds_jax.views import poses
from sds_jax.views.cameras import CAMERA_DIM, RAY_DIM


def make_networks() -> dict[str, nn.Module]:
  """Builds the networks of the recipe by folder name."""
  return dict(unet=UNet2DConditionModel.from_config(view_recipe.UNET),
              image_encoder=CLIPVisionModelWithProjection.from_config(view_recipe.IMAGE_ENCODER),
              cc_projection=CCProjection.from_config(view_recipe.PROJECTION),
              elevation_head=ElevationHead.from_config(view_recipe.ELEVATION_HEAD))


def init_params(key: Array, networks: dict[str, nn.Module], text_unet: Params) -> Params:
  """Initialises parameters from the text prior; consumes `key`.

  float32; the U-Net has the weights of the text prior, with zero weights for the photo at its input. All other networks
  get random parameters.
  """
  # Zero inputs of the right shapes are enough: parameters depend on shapes and the key.
  size, width = recipe.IMAGE_SIZE, view_recipe.PROJECTION["in_features"]
  inputs = dict(image_encoder=jnp.zeros((1, size, size, 3)), cc_projection=jnp.zeros((1, 1, width)),
                elevation_head=jnp.zeros((1, view_recipe.IMAGE_ENCODER["projection_dim"])))
  keys = jax.random.split(key, len(inputs))
  params = {name: networks[name].init(k, x)["params"] for k, (name, x) in zip(keys, inputs.items())}
  kernel = text_unet["conv_in"]["kernel"]
  channels = 3 * recipe.PIXEL_UNSHUFFLE**2
  # The input channels become z_t, photo, rays. With zero weights for the photo the U-Net starts as the text prior.
  blind = jnp.zeros((*kernel.shape[:2], channels, kernel.shape[3]))
  kernel = jnp.concatenate([kernel[:, :, :channels], blind, kernel[:, :, channels:]], axis=2)
  return params | dict(unet=dict(text_unet, conv_in=dict(text_unet["conv_in"], kernel=kernel)))


def on_background(image: Array, background: Array) -> Array:
  """Composites images over plain backgrounds, [B, H, W, 3] in [0, 1].

  Args:
    image: [B, H, W, 4] uint8, colours times opacity, and opacity.
    background: [B, 3] in [0, 1].
  """
  # The colours are premultiplied, so the background is added in proportion to the transparency.
  image = image.astype(jnp.float32) / 255.0
  return image[..., :3] + (1.0 - image[..., 3:]) * background[:, None, None]


def draw_pairs(batch: fitting.Batch, key: Array) -> tuple[Array, Array, Array, Array]:
  """Draws a photo and another view of each scene; consumes `key`.

  Args:
    batch: images and angles of `view_dataset`.

  Returns:
    photos on white and views on plain backgrounds, each [B, H, W, 3] in [0, 1]; poses [B, 4] from photo to view;
    elevations [B] of the photos, radians.
  """
  count = len(batch["images"])
  k_photo, k_view, k_background, k_white = jax.random.split(key, 4)
  photo = jax.random.randint(k_photo, (count,), 0, view_dataset.PHOTOS)
  # An offset of 1 .. VIEWS - 1 never returns to the photo itself.
  view = (photo + jax.random.randint(k_view, (count,), 1, view_dataset.VIEWS)) % view_dataset.VIEWS
  rows = jnp.arange(count)
  (azimuth, elevation), (other_azimuth, other_elevation) = (
      jnp.moveaxis(batch["angles"][rows, which], -1, 0) for which in (photo, view))
  background = jax.vmap(dataset.sample_background)(jax.random.split(k_background, count))
  # Runs composite over white as well as over random colours.
  background = jnp.where(jax.random.bernoulli(k_white, 0.3, (count, 1)), 1.0, background)
  return (on_background(batch["images"][rows, photo], jnp.ones((count, 3))),
          on_background(batch["images"][rows, view], background),
          poses.relative_pose(other_elevation, other_azimuth, elevation, azimuth), elevation)


def make_loss(networks: dict[str, nn.Module], schedule: Schedule, settings: dict[str, Any]) -> fitting.LossFn:
  """Builds the loss of a batch.

  The batch holds images uint8 [B, VIEWS, 64, 64, 4] and angles [B, VIEWS, 2] of `view_dataset`.

  Args:
    networks: result of `make_networks`.
    schedule: of the noise.
    settings: of the recipe; noise_power, drop_condition, max_loss_weight and elevation_weight are read here.
  """
  def apply(name: str, params: Params, *inputs: Array, **named: Array) -> Array:
    return networks[name].apply({"params": params[name]}, *inputs, **named)

  def loss_fn(params: Params, batch: fitting.Batch, key: Array) -> Array:
    k_pairs, k_t, k_eps, k_drop = jax.random.split(key, 4)
    photo, image, pose, elevation = draw_pairs(batch, k_pairs)
    photo_patches, x = (spaces.space_to_depth(2.0 * i - 1.0, recipe.PIXEL_UNSHUFFLE) for i in (photo, image))
    t = fitting.draw_times(k_t, len(x), schedule, settings["noise_power"])
    z_t = add_noise(schedule, x, jax.random.normal(k_eps, x.shape), t)
    tokens = apply("image_encoder", params, 2.0 * photo - 1.0)
    context = apply("cc_projection", params, with_pose(tokens, pose))
    # Photo, tokens and camera are dropped together, because zeros in all inputs are the null condition of guidance.
    keep = 1.0 - jax.random.bernoulli(k_drop, settings["drop_condition"], (len(x),)).astype(jnp.float32)
    camera = keep[:, None] * poses.pose_features(pose)
    z_in = jnp.concatenate([z_t, keep[:, None, None, None] * photo_patches], axis=-1)
    x_hat = apply("unet", params, unet_input(z_in, camera, RAY_DIM), t, keep[:, None, None] * context,
                  class_labels=camera)
    # The elevation is learnt from every photo, dropped or not.
    elevation_hat = apply("elevation_head", params, tokens[:, 0])[:, 0]
    return (fitting.clean_image_loss(x_hat, x, schedule, t, settings["max_loss_weight"])
            + settings["elevation_weight"] * jnp.mean((elevation_hat - elevation) ** 2))

  return loss_fn


COMPONENTS = dict(unet=view_recipe.UNET, image_encoder=view_recipe.IMAGE_ENCODER, cc_projection=view_recipe.PROJECTION,
                  elevation_head=view_recipe.ELEVATION_HEAD)
"""Folder of a network -> its config.json; the name is also the kind of the component."""


def write_prior(folder: pathlib.Path, params: Params) -> None:
  """Writes the prior as a diffusers folder with float16 weights."""
  for name, config in COMPONENTS.items():
    checkpoint.write_component(folder / name, name, config, params[name], dtype=jnp.float16)
  for name in ("scheduler", "feature_extractor"):
    (folder / name).mkdir(exist_ok=True)
  write_json(folder / "scheduler" / "scheduler_config.json", view_recipe.SCHEDULER)
  write_json(folder / "feature_extractor" / "preprocessor_config.json", view_recipe.FEATURE_EXTRACTOR)
  write_json(folder / "model_index.json", dict(
      _class_name="ShapeWorldViewPipeline", unet=["diffusers", "UNet2DConditionModel"],
      image_encoder=["transformers", "CLIPVisionModelWithProjection"],
      feature_extractor=["transformers", "CLIPImageProcessor"], scheduler=["diffusers", "DDIMScheduler"],
      cc_projection=["sds_jax", "CCProjection"], elevation_head=["sds_jax", "ElevationHead"],
      image_size=recipe.IMAGE_SIZE, pixel_unshuffle=recipe.PIXEL_UNSHUFFLE, camera_dim=CAMERA_DIM, ray_dim=RAY_DIM,
      pose="polar", patch_tokens=True))


def read_params(folder: pathlib.Path) -> Params:
  """Reads float32 parameters from a prior of the recipe.

  Raises:
    CheckpointError: files are missing or damaged.
    ValueError: a network differs from the recipe.
  """
  params = {}
  for name, network in make_networks().items():
    stored_network, params[name] = checkpoint.read_component(folder / name, name)
    if checkpoint.abstract_params(stored_network) != checkpoint.abstract_params(network):
      raise ValueError(f"{folder / name} is not the network of sds_jax/shapeworld/view_recipe.py; train without --init")
  return params


def train(out: pathlib.Path, *, seed: int = 0, init: pathlib.Path | None = None, log_every: int = 50,
          save_every: int = 500, sheet_every: int = 2000, **overrides: Any) -> pathlib.Path:
  """Trains the view prior and returns its folder.

  Training starts from the newest checkpoint in `out`, else from the view prior `init`, else from the shipped text
  prior.

  Args:
    out: folder of the run.
    seed: of images, initialisation and noise.
    init: folder of a view prior of the same recipe, or None.
    log_every, save_every, sheet_every: steps between records of the loss, checkpoints and exports.
    **overrides: settings of `view_recipe.TRAINING`.

  Raises:
    CheckpointError: `init` is incomplete or damaged.
    ValueError: `init` is of another recipe, or the run in `out` has other settings.
  """
  settings = {**view_recipe.TRAINING, **overrides}
  networks = make_networks()
  # A restored checkpoint replaces the parameters, so a resumed run needs only their structure.
  if fitting.has_checkpoint(out) or not init:
    _, unet = checkpoint.read_component(sources.shipped_folder() / "unet", "unet")
    params = init_params(seeded_key(seed), networks, unet)
  else:
    params = read_params(init)
  out.mkdir(parents=True, exist_ok=True)
  # `view_recipe.TRAINING` supplies settings introduced after an older run began.
  fitting.check_same_settings(out / "settings.json", {
      **settings, "seed": seed, "init": str(init) if init else None, "weights": view_dataset.KIND_WEIGHTS},
      view_recipe.TRAINING)
  images = out / "images.npz"
  if not images.exists():
    view_dataset.make_dataset(settings["num_images"], seed, images, settings["front_weight"], settings["chair_weight"])
  with np.load(images) as stored:
    data = {name: stored[name] for name in ("images", "angles")}
  optimizer = fitting.make_optimizer(settings["steps"], settings)
  loss_fn = make_loss(networks, schedules.schedule_from_config(recipe.SCHEDULER), settings)
  state = fitting.fit(out, fitting.new_state(params, optimizer),
                      fitting.make_step(loss_fn, optimizer, settings["ema_decay"]), data, settings, seed,
                      on_sheet=lambda state: write_prior(out / "prior", jax.device_get(state.ema)),
                      log_every=log_every, save_every=save_every, sheet_every=sheet_every)
  write_prior(out / "prior", jax.device_get(state.ema))
  print("scoring the prior for its card ...")
  view_card.write_card(out, settings, seed, init)
  return out / "prior"


def main() -> None:
  """Runs the command line of the recipe."""
  fitting.run_recipe(train, "Train the view prior shipped with sds_jax.", view_recipe.TRAINING, "view_prior_run")


if __name__ == "__main__":
  main()
