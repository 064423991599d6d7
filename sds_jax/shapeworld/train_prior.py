r"""Train the text prior that ships with the package, on one machine and from nothing.

    python -m sds_jax.shapeworld.train_prior --out=prior_run

renders the training images if they are not there yet (`<out>/images.npz`), trains the U-Net and its text encoder
together, and leaves in `<out>`: `checkpoints/` (a killed run started again goes on from the newest), `metrics.jsonl`,
a sheet of samples every so often, and `prior/`, the folder in diffusers format that `--config.prior.path` takes. With
`--init=FOLDER` it starts from the weights of a prior of the same recipe instead of random ones.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time
from typing import Any, Callable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm

from sds_jax import compilation
from sds_jax.diffusion import schedules
from sds_jax.priors import checkpoint, clip, prior as prior_lib, spaces, tokenizers, unet
from sds_jax.priors.files import read_json, write_atomically, write_json
from sds_jax.shapeworld import captions, card, dataset, recipe, score_prior, tokenizer
from sds_jax.shapeworld.tokenizer import MAX_TOKENS
from sds_jax.types import Array, Params
from sds_jax.views.cameras import CAMERA_DIM, RAY_DIM


@flax.struct.dataclass
class TrainState:
  """What a checkpoint of the training holds."""
  step: Array
  params: Params
  ema: Params
  opt_state: Any


def make_networks(vocab_size: int, special: dict[str, int]) -> tuple[unet.UNet2DConditionModel, clip.CLIPTextModel]:
  """The two networks of the recipe; `special` holds bos_token_id, eos_token_id and pad_token_id."""
  return (unet.UNet2DConditionModel.from_config(recipe.UNET),
          clip.CLIPTextModel.from_config(dict(recipe.TEXT_ENCODER, vocab_size=vocab_size, **special)))


def init_params(key: Array, networks: tuple[Any, Any]) -> Params:
  """Fresh float32 parameters, {"unet": ..., "text_encoder": ...}; consumes `key`."""
  unet_model, text_model = networks
  k_unet, k_text = jax.random.split(key)
  size, channels = recipe.UNET["sample_size"], recipe.UNET["in_channels"]
  text = jnp.zeros((1, MAX_TOKENS, recipe.UNET["cross_attention_dim"]))
  return dict(
      unet=unet_model.init(k_unet, jnp.zeros((1, size, size, channels)), jnp.zeros((1,), jnp.int32), text,
                           class_labels=jnp.zeros((1, CAMERA_DIM)))["params"],
      text_encoder=text_model.init(k_text, jnp.zeros((1, MAX_TOKENS), jnp.int32))["params"])


def read_params(folder: pathlib.Path) -> Params:
  """The float32 parameters in `folder`, a prior that this recipe has made, as `init_params` lays them out.

  Raises:
    CheckpointError: files are missing or damaged.
    ValueError: they are of other networks, or of another vocabulary.
  """
  params = {}
  with tempfile.TemporaryDirectory() as words:
    tokenizer.write_tokenizer(pathlib.Path(words))
    vocabulary = read_json(pathlib.Path(words) / "vocab.json")
    networks = make_networks(len(vocabulary), tokenizer.special_ids(pathlib.Path(words)))
  if read_json(folder / "tokenizer" / "vocab.json") != vocabulary:
    raise ValueError(f"{folder / 'tokenizer'} is not the recipe's vocabulary; train without --init")
  for (name, kind), network in zip((("unet", "unet"), ("text_encoder", "clip_text")), networks):
    found, params[name] = checkpoint.read_component(folder / name, kind)
    if checkpoint.abstract_params(found) != checkpoint.abstract_params(network):
      raise ValueError(f"{folder / name} is not the network of sds_jax/shapeworld/recipe.py; train without --init")
  return params


def make_optimizer(steps: int, settings: dict[str, Any]) -> optax.GradientTransformation:
  """AdamW with gradient clipping; the rate is warmed up, stays, and falls linearly to zero over the last part.

  Until the fall begins a run does not depend on `steps`, so it can be stopped earlier or made longer half-way.
  """
  fall = max(int(settings["decay"] * steps), 1)
  rate = optax.join_schedules(
      [optax.linear_schedule(0.0, settings["learning_rate"], settings["warmup"]),
       optax.constant_schedule(settings["learning_rate"]),
       optax.linear_schedule(settings["learning_rate"], 0.0, fall)],
      [settings["warmup"], steps - fall])
  return optax.chain(optax.clip_by_global_norm(settings["clip_norm"]),
                     optax.adamw(rate, b2=0.99, weight_decay=settings["weight_decay"]))


def make_step(networks: tuple[Any, Any], schedule: Any, optimizer: optax.GradientTransformation,
              settings: dict[str, Any], null_ids: np.ndarray) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
  """The training step (state, images uint8 [B,64,64,3], ids [B,L], camera [B,D], key) -> (state, metrics)."""
  unet_model, text_model = networks
  num_times = schedule.alpha.shape[0]

  def loss_fn(params, images, ids, camera, key):
    k_t, k_eps, k_text, k_camera = jax.random.split(key, 4)
    batch = images.shape[0]
    x = spaces.space_to_depth(images.astype(jnp.float32) / 127.5 - 1.0, recipe.PIXEL_UNSHUFFLE)
    # Stratified, so that every batch covers all noise levels; denser towards pure noise, where only the text and the
    # camera say what is to be seen. Where the object shows through the noise, a network learns nothing about words.
    u = (jnp.arange(batch) + jax.random.uniform(k_t, (batch,))) / batch
    t = jnp.minimum((1.0 - u**settings["noise_power"]) * num_times, num_times - 1).astype(jnp.int32)
    eps = jax.random.normal(k_eps, x.shape)
    alpha, sigma = (a[t][:, None, None, None] for a in (schedule.alpha, schedule.sigma))
    z_t = alpha * x + sigma * eps
    no_text = jax.random.bernoulli(k_text, settings["drop_text"], (batch, 1))
    no_camera = jax.random.bernoulli(k_camera, settings["drop_camera"], (batch, 1))
    text = text_model.apply({"params": params["text_encoder"]}, jnp.where(no_text, jnp.asarray(null_ids)[None], ids))
    camera = jnp.where(no_camera, 0.0, camera)
    x_hat = unet_model.apply({"params": params["unet"]}, prior_lib.unet_input(z_t, camera, RAY_DIM), t, text,
                             class_labels=camera)
    # 1 / sigma^2 makes it the loss of v-prediction; bounded, so that the cleanest images do not drown the others.
    weight = jnp.minimum(1.0 / sigma**2, settings["max_loss_weight"])
    return jnp.mean(weight * (x_hat - x) ** 2)

  def step(state: TrainState, images, ids, camera, key):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, images, ids, camera, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # A young average forgets its random start quickly: the decay grows as (1 + n) / (10 + n).
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(settings["ema_decay"], (1.0 + n) / (10.0 + n))
    ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
    return (TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state),
            dict(loss=loss, grad_norm=optax.tree.norm(grads)))

  return jax.jit(step, donate_argnums=0, compiler_options=compilation.unet_options())


def batches(data: dict[str, np.ndarray], ids: np.ndarray, batch_size: int, seed: int,
            first_step: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Batches drawn without replacement within an epoch; the order depends only on (seed, step)."""
  per_epoch = len(ids) // batch_size
  step = first_step
  while True:
    epoch, offset = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(ids))
    for i in range(offset, per_epoch):
      take = np.sort(order[i * batch_size:(i + 1) * batch_size])
      yield data["images"][take], ids[take], data["cameras"][take]
      step += 1


def write_prior(folder: pathlib.Path, params: Params, vocab_size: int, special: dict[str, int]) -> None:
  """Write the diffusers-format folder (float16 safetensors) that `priors.build` reads."""
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
               vocabulary=sorted(captions.WORDS))
  write_json(folder / "model_index.json", index)


def sample_sheet(path: pathlib.Path, folder: pathlib.Path, seed: int = 0) -> None:
  """Samples of 32 captions with the prior in `folder` as one PNG."""
  images = score_prior.score(*prior_lib.build(folder), num=32, seed=seed)[1]
  score_prior.write_sheet(path, images)


def train(out: pathlib.Path, *, seed: int = 0, init: pathlib.Path | None = None, log_every: int = 50,
          save_every: int = 500, sheet_every: int = 2000, **overrides: Any) -> pathlib.Path:
  """Train from `out`'s newest checkpoint, or the prior `init`, or nothing; returns the folder of the finished prior."""
  settings = {**recipe.TRAINING, **overrides}
  given = read_params(init) if init and not any((out / "checkpoints").glob("[0-9]*")) else None
  out.mkdir(parents=True, exist_ok=True)
  _check_same_run(out / "settings.json", {**settings, "seed": seed, "steps": None, "init": str(init) if init else None,
                                          "weights": dataset.WEIGHTS})
  images = out / "images.npz"
  if not images.exists():
    dataset.make_dataset(settings["num_images"], seed, images)
  with np.load(images) as stored:
    data = {name: stored[name] for name in ("images", "captions", "cameras")}
  tokenizer.write_tokenizer(out / "tokenizer")
  tokens = tokenizers.load_tokenizer(out / "tokenizer")
  unique, inverse = np.unique(data["captions"], return_inverse=True)
  ids = np.asarray(tokens([str(c) for c in unique]), np.int32)[inverse.reshape(-1)]
  null_ids = np.asarray(tokens([""]), np.int32)[0]
  vocab_size = len(json.loads((out / "tokenizer" / "vocab.json").read_text()))
  special = tokenizer.special_ids(out / "tokenizer")

  networks = make_networks(vocab_size, special)
  schedule = schedules.schedule_from_config(recipe.SCHEDULER)
  optimizer = make_optimizer(settings["steps"], settings)
  step_fn = make_step(networks, schedule, optimizer, settings, null_ids)
  key = jax.random.key(seed)
  params = given or jax.jit(lambda k: init_params(k, networks))(key)
  state = TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=jax.tree.map(jnp.copy, params),
                     opt_state=optimizer.init(params))
  state = jax.device_put(state, jax.devices()[0])  # as restored ones are: a resumed run has the same program
  with ocp.CheckpointManager(out.absolute() / "checkpoints", options=ocp.CheckpointManagerOptions(
      max_to_keep=2, save_interval_steps=save_every)) as manager:
    if manager.latest_step() is not None:
      state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(
          jax.tree.map(ocp.utils.to_shape_dtype_struct, state)))
      print(f"going on from step {int(state.step)} of {out / 'checkpoints'}")
      _forget_after(out / "metrics.jsonl", int(state.step))
    state = _loop(state, step_fn, data, ids, key, manager, settings, out, seed, log_every, sheet_every,
                  lambda s: write_prior(out / "prior", jax.device_get(s.ema), vocab_size, special))
  write_prior(out / "prior", jax.device_get(state.ema), vocab_size, special)
  print("scoring the prior for its card ...")
  card.write_card(out, settings, seed, init)
  return out / "prior"


def _check_same_run(path: pathlib.Path, settings: dict[str, Any]) -> None:
  """Keep the settings of a run beside it; refuse to go on with others (but for the number of steps)."""
  if not path.exists():
    write_json(path, settings)
  before = json.loads(path.read_text(encoding="utf-8"))
  for name in sorted(before.keys() | settings.keys()):
    if before.get(name) != settings.get(name):
      raise ValueError(f"{name}={settings.get(name)!r}, but the run in {path.parent} was begun with "
                       f"{before.get(name)!r}; use the same or another --out")


def _forget_after(log: pathlib.Path, step: int) -> None:
  """Take the records of steps that will be taken again out of the log."""
  if log.exists():
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
    write_atomically(log, lambda path: path.write_text(kept, encoding="utf-8"))


def _loop(state, step_fn, data, ids, key, manager, settings, out, seed, log_every, sheet_every, export):
  """The steps that are left, with a progress bar; every number is also a line of metrics.jsonl."""
  first = int(state.step)
  feed = batches(data, ids, settings["batch_size"], seed, first)
  start, losses = time.perf_counter(), []
  bar = tqdm.trange(first, settings["steps"], initial=first, total=settings["steps"], desc="training the prior",
                    mininterval=5.0)
  for step in bar:
    state, metrics = step_fn(state, *next(feed), key)
    losses.append(metrics["loss"])
    if (step + 1) % log_every == 0:
      loss = float(np.mean(jax.device_get(losses)))
      losses = []
      bar.set_postfix(loss=f"{loss:.4f}")
      with open(out / "metrics.jsonl", "a") as log:
        log.write(json.dumps(dict(step=step + 1, loss=loss, seconds=round(time.perf_counter() - start, 1))) + "\n")
    manager.save(step + 1, args=ocp.args.StandardSave(state), force=step + 1 == settings["steps"])
    if (step + 1) % sheet_every == 0 and step + 1 < settings["steps"]:
      export(state)
      sample_sheet(out / f"samples_{step + 1:06d}.png", out / "prior", seed)
  return state


def main() -> None:
  """Command line of the recipe."""
  defaults = recipe.TRAINING
  parser = argparse.ArgumentParser(description="Train the text prior that ships with sds_jax.")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("prior_run"), help="folder of the run")
  parser.add_argument("--seed", type=int, default=0, help="seed of images, initialisation and noise")
  parser.add_argument("--init", type=pathlib.Path, help="start from the weights of this prior (a folder)")
  parser.add_argument("--steps", type=int, default=defaults["steps"], help="optimiser steps")
  parser.add_argument("--batch_size", type=int, default=defaults["batch_size"], help="images a step")
  parser.add_argument("--num_images", type=int, default=defaults["num_images"], help="training images to render")
  parser.add_argument("--log_every", type=int, default=50, help="steps between records of the loss")
  parser.add_argument("--save_every", type=int, default=500, help="steps between checkpoints")
  parser.add_argument("--sheet_every", type=int, default=2000, help="steps between sample sheets")
  args = vars(parser.parse_args())
  compilation.prepare()
  try:
    print(f"the prior lies in {train(args.pop('out'), **args)}")
  except (ValueError, OSError) as error:
    parser.error(str(error))


if __name__ == "__main__":
  main()
