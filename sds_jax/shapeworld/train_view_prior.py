r"""Train the view prior that ships with the package, on one machine, from the text prior that ships.

    python -m sds_jax.shapeworld.train_view_prior --out=view_prior_run

renders the training images if they are not there yet (`<out>/images.npz`), trains the U-Net, the image encoder, the
projection and the elevation's head together, and leaves in `<out>` what `train_prior` does. With `--init=FOLDER` it
starts from the weights of a view prior of the same recipe instead.
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
from sds_jax.shapeworld import dataset, fitting, recipe, view_card, view_dataset, view_recipe
from sds_jax.types import Array, Params, Schedule
from sds_jax.views import poses
from sds_jax.views.cameras import CAMERA_DIM, RAY_DIM


def make_networks() -> dict[str, nn.Module]:
  """The networks of the recipe, by the names of their folders."""
  return dict(unet=UNet2DConditionModel.from_config(view_recipe.UNET),
              image_encoder=CLIPVisionModelWithProjection.from_config(view_recipe.IMAGE_ENCODER),
              cc_projection=CCProjection.from_config(view_recipe.PROJECTION),
              elevation_head=ElevationHead.from_config(view_recipe.ELEVATION_HEAD))


def init_params(key: Array, networks: dict[str, nn.Module], text_unet: Params) -> Params:
  """Float32 parameters: those of the text prior's U-Net, which takes no notice of the picture yet, all else fresh.

  Consumes `key`.
  """
  size, width = recipe.IMAGE_SIZE, view_recipe.PROJECTION["in_features"]
  inputs = dict(image_encoder=jnp.zeros((1, size, size, 3)), cc_projection=jnp.zeros((1, 1, width)),
                elevation_head=jnp.zeros((1, view_recipe.IMAGE_ENCODER["projection_dim"])))
  keys = jax.random.split(key, len(inputs))
  params = {name: networks[name].init(k, x)["params"] for k, (name, x) in zip(keys, inputs.items())}
  kernel = text_unet["conv_in"]["kernel"]
  channels = 3 * recipe.PIXEL_UNSHUFFLE**2
  blind = jnp.zeros((*kernel.shape[:2], channels, kernel.shape[3]))
  kernel = jnp.concatenate([kernel[:, :, :channels], blind, kernel[:, :, channels:]], axis=2)
  return params | dict(unet=dict(text_unet, conv_in=dict(text_unet["conv_in"], kernel=kernel)))


def on_background(image: Array, background: Array) -> Array:
  """Colours times opacity, and opacity, uint8 [B, H, W, 4] over colours [B, 3] in [0, 1]: [B, H, W, 3] in [0, 1]."""
  image = image.astype(jnp.float32) / 255.0
  return image[..., :3] + (1.0 - image[..., 3:]) * background[:, None, None]


def draw_pairs(batch: fitting.Batch, key: Array) -> tuple[Array, Array, Array, Array]:
  """Pictures on white, other views on a plain background [B, H, W, 3] in [0, 1]; poses [B, 4], elevations [B] of the
  pictures. Consumes `key`."""
  count = len(batch["images"])
  k_picture, k_view, k_background, k_white = jax.random.split(key, 4)
  picture = jax.random.randint(k_picture, (count,), 0, view_dataset.PICTURES)
  view = (picture + jax.random.randint(k_view, (count,), 1, view_dataset.VIEWS)) % view_dataset.VIEWS
  rows = jnp.arange(count)
  (azimuth, elevation), (other_azimuth, other_elevation) = (
      jnp.moveaxis(batch["angles"][rows, which], -1, 0) for which in (picture, view))
  background = jax.vmap(dataset.sample_background)(jax.random.split(k_background, count))
  background = jnp.where(jax.random.bernoulli(k_white, 0.3, (count, 1)), 1.0, background)
  return (on_background(batch["images"][rows, picture], jnp.ones((count, 3))),
          on_background(batch["images"][rows, view], background),
          poses.relative_pose(other_elevation, other_azimuth, elevation, azimuth), elevation)


def make_loss(networks: dict[str, nn.Module], schedule: Schedule, settings: dict[str, Any]) -> fitting.LossFn:
  """The loss of a batch: images uint8 [B, VIEWS, 64, 64, 4] and angles [B, VIEWS, 2] of `view_dataset`."""
  def run(name: str, params: Params, *inputs: Array, **named: Array) -> Array:
    return networks[name].apply({"params": params[name]}, *inputs, **named)

  def loss_fn(params: Params, batch: fitting.Batch, key: Array) -> Array:
    k_pairs, k_t, k_eps, k_drop = jax.random.split(key, 4)
    picture, image, pose, elevation = draw_pairs(batch, k_pairs)
    given, x = (spaces.space_to_depth(2.0 * i - 1.0, recipe.PIXEL_UNSHUFFLE) for i in (picture, image))
    t = fitting.draw_times(k_t, len(x), schedule, settings["noise_power"])
    z_t = add_noise(schedule, x, jax.random.normal(k_eps, x.shape), t)
    tokens = run("image_encoder", params, 2.0 * picture - 1.0)
    context = run("cc_projection", params, with_pose(tokens, pose))
    told = 1.0 - jax.random.bernoulli(k_drop, settings["drop_condition"], (len(x),)).astype(jnp.float32)
    camera = told[:, None] * poses.pose_features(pose)
    z_in = jnp.concatenate([z_t, told[:, None, None, None] * given], axis=-1)
    x_hat = run("unet", params, unet_input(z_in, camera, RAY_DIM), t, told[:, None, None] * context,
                class_labels=camera)
    seen_from = run("elevation_head", params, tokens[:, 0])[:, 0]
    return (fitting.clean_image_loss(x_hat, x, schedule, t, settings["max_loss_weight"])
            + settings["elevation_weight"] * jnp.mean((seen_from - elevation) ** 2))

  return loss_fn


COMPONENTS = dict(unet=view_recipe.UNET, image_encoder=view_recipe.IMAGE_ENCODER, cc_projection=view_recipe.PROJECTION,
                  elevation_head=view_recipe.ELEVATION_HEAD)
"""Folder of a network -> its config.json; each is of the kind of that name."""


def write_prior(folder: pathlib.Path, params: Params) -> None:
  """Write the diffusers-format folder (float16 safetensors) that `priors.build` reads."""
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
  """The float32 parameters in `folder`, a prior that this recipe has made.

  Raises:
    CheckpointError: files are missing or damaged.
    ValueError: they are of other networks.
  """
  params = {}
  for name, network in make_networks().items():
    found, params[name] = checkpoint.read_component(folder / name, name)
    if checkpoint.abstract_params(found) != checkpoint.abstract_params(network):
      raise ValueError(f"{folder / name} is not the network of sds_jax/shapeworld/view_recipe.py; train without --init")
  return params


def train(out: pathlib.Path, *, seed: int = 0, init: pathlib.Path | None = None, log_every: int = 50,
          save_every: int = 500, sheet_every: int = 2000, **overrides: Any) -> pathlib.Path:
  """Train from `out`'s newest checkpoint, the view prior `init`, or the text prior; returns the finished folder."""
  settings = {**view_recipe.TRAINING, **overrides}
  networks = make_networks()
  if fitting.has_checkpoint(out) or not init:
    _, unet = checkpoint.read_component(sources.shipped_folder() / "unet", "unet")
    params = init_params(jax.random.key(seed), networks, unet)
  else:
    params = read_params(init)
  out.mkdir(parents=True, exist_ok=True)
  fitting.check_same_settings(out / "settings.json", {**settings, "seed": seed, "init": str(init) if init else None,
                                                 "weights": view_dataset.WEIGHTS}, view_recipe.TRAINING)
  images = out / "images.npz"
  if not images.exists():
    view_dataset.make_dataset(settings["num_images"], seed, images, settings["front_weight"], settings["chair_weight"])
  with np.load(images) as stored:
    data = {name: stored[name] for name in ("images", "angles")}
  optimizer = fitting.make_optimizer(settings["steps"], settings)
  loss_fn = make_loss(networks, schedules.schedule_from_config(recipe.SCHEDULER), settings)
  state = fitting.fit(out, fitting.new_state(params, optimizer),
                      fitting.make_step(loss_fn, optimizer, settings["ema_decay"]), data, settings, seed,
                      look=lambda state: write_prior(out / "prior", jax.device_get(state.ema)),
                      log_every=log_every, save_every=save_every, sheet_every=sheet_every)
  write_prior(out / "prior", jax.device_get(state.ema))
  print("scoring the prior for its card ...")
  view_card.write_card(out, settings, seed, init)
  return out / "prior"


def main() -> None:
  """Command line of the recipe."""
  fitting.run_recipe(train, "Train the view prior that ships with sds_jax.", view_recipe.TRAINING, "view_prior_run")


if __name__ == "__main__":
  main()
