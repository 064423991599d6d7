r"""Trains the text prior shipped with the package, on a single machine and from random weights.

    python -m sds_jax.shapeworld.train_prior --out=prior_run

renders the training images unless `<out>/images.npz` exists, and trains the U-Net and its text encoder together. The
folder `<out>` receives `checkpoints/` (a killed run continues from the newest), `metrics.jsonl`, sheets of samples, and
`prior/`, a folder in diffusers format for `--config.prior.path`. With `--init=FOLDER` training starts from the weights
of a prior of the same recipe.
"""
from __future__ import annotations

import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.diffusion import schedules
from sds_jax.diffusion.schedules import add_noise
from sds_jax.priors import prior as prior_lib, spaces
from sds_jax.priors.loading import checkpoint, tokenizers
from sds_jax.priors.loading.files import read_json, write_json
from sds_jax.priors.networks import clip, unet
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import captions, card, dataset, fitting, recipe, score_prior, tokenizer
from sds_jax.shapeworld.tokenizer import MAX_TOKENS
from sds_jax.types import Array, Params, Schedule
from sds_jax.views.cameras import CAMERA_DIM, RAY_DIM


def make_networks(vocab_size: int, special: dict[str, int]) -> tuple[unet.UNet2DConditionModel, clip.CLIPTextModel]:
  """Builds the U-Net and the text encoder of the recipe.

  Args:
    vocab_size: number of tokens.
    special: bos_token_id, eos_token_id and pad_token_id.
  """
  return (unet.UNet2DConditionModel.from_config(recipe.UNET),
          clip.CLIPTextModel.from_config(dict(recipe.TEXT_ENCODER, vocab_size=vocab_size, **special)))


def init_params(key: Array, networks: tuple[Any, Any]) -> Params:
  """Initialises float32 parameters {"unet": ..., "text_encoder": ...}; consumes `key`."""
  unet_model, text_model = networks
  k_unet, k_text = jax.random.split(key)
  size, channels = recipe.UNET["sample_size"], recipe.UNET["in_channels"]
  # Zero inputs of the right shapes are enough: parameters depend on shapes and the key.
  text = jnp.zeros((1, MAX_TOKENS, recipe.UNET["cross_attention_dim"]))
  return dict(
      unet=unet_model.init(k_unet, jnp.zeros((1, size, size, channels)), jnp.zeros((1,), jnp.int32), text,
                           class_labels=jnp.zeros((1, CAMERA_DIM)))["params"],
      text_encoder=text_model.init(k_text, jnp.zeros((1, MAX_TOKENS), jnp.int32))["params"])


def read_params(folder: pathlib.Path) -> Params:
  """Reads float32 parameters in the layout of `init_params`.

  Raises:
    CheckpointError: files are missing or damaged.
    ValueError: the networks or the vocabulary differ from the recipe.
  """
  params = {}
  # The recipe's tokenizer exists only as files, so a temporary folder holds a copy for the comparison.
  with tempfile.TemporaryDirectory() as temporary:
    tokenizer.write_tokenizer(pathlib.Path(temporary))
    vocabulary = read_json(pathlib.Path(temporary) / "vocab.json")
    networks = make_networks(len(vocabulary), tokenizer.special_ids(pathlib.Path(temporary)))
  if read_json(folder / "tokenizer" / "vocab.json") != vocabulary:
    raise ValueError(f"{folder / 'tokenizer'} is not the recipe's vocabulary; train without --init")
  for (name, kind), network in zip((("unet", "unet"), ("text_encoder", "clip_text")), networks):
    stored_network, params[name] = checkpoint.read_component(folder / name, kind)
    if checkpoint.abstract_params(stored_network) != checkpoint.abstract_params(network):
      raise ValueError(f"{folder / name} is not the network of sds_jax/shapeworld/recipe.py; train without --init")
  return params


def make_loss(networks: tuple[Any, Any], schedule: Schedule, settings: dict[str, Any],
              null_ids: np.ndarray) -> fitting.LossFn:
  """Builds the loss of a batch.

  The batch holds images uint8 [B, 64, 64, 3], ids [B, L] and cameras [B, D].

  Args:
    networks: result of `make_networks`.
    schedule: of the noise.
    settings: of the recipe; noise_power, drop_text, drop_camera and max_loss_weight are read here.
    null_ids: [L] token ids of the empty prompt.
  """
  unet_model, text_model = networks

  def loss_fn(params: Params, batch: fitting.Batch, key: Array) -> Array:
    k_t, k_eps, k_text, k_camera = jax.random.split(key, 4)
    # The network sees patches as pixels of 48 channels, in [-1, 1].
    x = spaces.space_to_depth(batch["images"].astype(jnp.float32) / 127.5 - 1.0, recipe.PIXEL_UNSHUFFLE)
    t = fitting.draw_times(k_t, len(x), schedule, settings["noise_power"])
    z_t = add_noise(schedule, x, jax.random.normal(k_eps, x.shape), t)
    # Dropped independently: guidance needs the prior without text, and users may have no camera.
    no_text = jax.random.bernoulli(k_text, settings["drop_text"], (len(x), 1))
    no_camera = jax.random.bernoulli(k_camera, settings["drop_camera"], (len(x), 1))
    text = text_model.apply({"params": params["text_encoder"]},
                            jnp.where(no_text, jnp.asarray(null_ids)[None], batch["ids"]))
    # Zeros are the unknown camera of the recipe.
    camera = jnp.where(no_camera, 0.0, batch["cameras"])
    x_hat = unet_model.apply({"params": params["unet"]}, prior_lib.unet_input(z_t, camera, RAY_DIM), t, text,
                             class_labels=camera)
    return fitting.clean_image_loss(x_hat, x, schedule, t, settings["max_loss_weight"])

  return loss_fn


def write_prior(folder: pathlib.Path, params: Params, vocab_size: int, special: dict[str, int],
                **more: Any) -> None:
  """Writes the prior as a diffusers folder with float16 weights; `more` are further keys of model_index.json."""
  folder.mkdir(parents=True, exist_ok=True)
  checkpoint.write_component(folder / "unet", "unet", recipe.UNET, params["unet"], dtype=jnp.float16)
  checkpoint.write_component(folder / "text_encoder", "clip_text",
                             dict(recipe.TEXT_ENCODER, vocab_size=vocab_size, **special),
                             params["text_encoder"], dtype=jnp.float16)
  tokenizer.write_tokenizer(folder / "tokenizer")
  (folder / "scheduler").mkdir(exist_ok=True)
  write_json(folder / "scheduler" / "scheduler_config.json", recipe.SCHEDULER)
  index = dict(_class_name="ShapeWorldPipeline", unet=["diffusers", "UNet2DConditionModel"],
               text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
               scheduler=["diffusers", "DDIMScheduler"], image_size=recipe.IMAGE_SIZE,
               pixel_unshuffle=recipe.PIXEL_UNSHUFFLE, camera_dim=CAMERA_DIM, ray_dim=RAY_DIM,
               # Prompts with other words are refused by default: the prior never saw them.
               vocabulary=sorted(captions.WORDS), captions=captions.GRAMMAR.as_dict())
  write_json(folder / "model_index.json", index | more)


def write_sample_sheet(path: pathlib.Path, folder: pathlib.Path, seed: int = 0) -> None:
  """Writes a PNG sheet with samples of 32 captions."""
  images = score_prior.score(*prior_lib.build(folder), num=32, seed=seed)[1]
  score_prior.write_sheet(path, images)


def train(out: pathlib.Path, *, seed: int = 0, init: pathlib.Path | None = None, log_every: int = 50,
          save_every: int = 500, sheet_every: int = 2000, **overrides: Any) -> pathlib.Path:
  """Trains the text prior and returns its folder.

  Training starts from the newest checkpoint in `out`, else from the prior `init`, else from random weights.

  Args:
    out: folder of the run.
    seed: of images, initialisation and noise.
    init: folder of a prior of the same recipe, or None.
    log_every, save_every, sheet_every: steps between records of the loss, checkpoints and sample sheets.
    **overrides: settings of `recipe.TRAINING`.

  Raises:
    CheckpointError: `init` is incomplete or damaged.
    ValueError: `init` is of another recipe, or the run in `out` has other settings.
  """
  settings = {**recipe.TRAINING, **overrides}
  # Read before anything is written, so a mistake in --init leaves no trace in `out`.
  initial_params = read_params(init) if init and not fitting.has_checkpoint(out) else None
  out.mkdir(parents=True, exist_ok=True)
  fitting.check_same_settings(out / "settings.json", {
      **settings, "seed": seed, "init": str(init) if init else None, "weights": dataset.KIND_WEIGHTS})
  images = out / "images.npz"
  if not images.exists():
    dataset.make_dataset(settings["num_images"], seed, images)
  with np.load(images) as stored:
    data = {name: stored[name] for name in ("images", "captions", "cameras")}
  tokenizer.write_tokenizer(out / "tokenizer")
  tokens = tokenizers.load_tokenizer(out / "tokenizer")
  # Captions repeat, so each distinct caption is tokenized once.
  unique, inverse = np.unique(data.pop("captions"), return_inverse=True)
  data["ids"] = np.asarray(tokens([str(c) for c in unique]), np.int32)[inverse.reshape(-1)]
  null_ids = np.asarray(tokens([""]), np.int32)[0]
  vocab_size = len(json.loads((out / "tokenizer" / "vocab.json").read_text()))
  special = tokenizer.special_ids(out / "tokenizer")

  networks = make_networks(vocab_size, special)
  optimizer = fitting.make_optimizer(settings["steps"], settings)
  loss_fn = make_loss(networks, schedules.schedule_from_config(recipe.SCHEDULER), settings, null_ids)
  params = initial_params or jax.jit(lambda k: init_params(k, networks))(seeded_key(seed))

  def export(state: fitting.PriorTrainState) -> None:
    write_prior(out / "prior", jax.device_get(state.ema), vocab_size, special)

  def export_with_sheet(state: fitting.PriorTrainState) -> None:
    export(state)
    write_sample_sheet(out / f"samples_{int(state.step):06d}.png", out / "prior", seed)

  state = fitting.fit(out, fitting.new_state(params, optimizer),
                      fitting.make_step(loss_fn, optimizer, settings["ema_decay"]), data, settings, seed,
                      on_sheet=export_with_sheet, log_every=log_every, save_every=save_every, sheet_every=sheet_every)
  # A run that resumes after its last step reaches this line without an export.
  export(state)
  print("scoring the prior for its card ...")
  card.write_card(out, settings, seed, init)
  return out / "prior"


def main() -> None:
  """Runs the command line of the recipe."""
  fitting.run_recipe(train, "Train the text prior shipped with sds_jax.", recipe.TRAINING, "prior_run")


if __name__ == "__main__":
  main()
