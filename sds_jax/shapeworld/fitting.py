"""What the recipes of the shipped priors have in common: the optimiser, the step, and a loop that can be killed."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
import json
import pathlib
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm

from sds_jax import compilation
from sds_jax.priors.loading.files import write_atomically, write_json
from sds_jax.shapeworld import flag_types
from sds_jax.types import Array, Params, Schedule

Batch = Mapping[str, Array]
LossFn = Callable[[Params, Batch, Array], Array]
"""(params, batch, key) -> scalar; consumes the key."""


@flax.struct.dataclass
class PriorTrainState:
  """What a checkpoint of the training holds."""
  step: Array
  params: Params
  ema: Params
  opt_state: Any


def make_optimizer(steps: int, settings: Mapping[str, Any]) -> optax.GradientTransformation:
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


def new_state(params: Params, optimizer: optax.GradientTransformation) -> PriorTrainState:
  """The state before the first step, on the first device."""
  state = PriorTrainState(step=jnp.zeros((), jnp.int32), params=params, ema=jax.tree.map(jnp.copy, params),
                     opt_state=optimizer.init(params))
  return jax.device_put(state, jax.devices()[0])  # as restored ones are: a resumed run has the same program


def draw_times(key: Array, batch: int, schedule: Schedule, power: float) -> Array:
  """t [batch] int32, stratified, so that every batch covers all noise levels. Consumes `key`.

  t = 1 - u^power is denser towards pure noise, where only the condition says what is to be seen. Where the object
  shows through the noise, a network learns nothing about words.
  """
  count = schedule.alpha.shape[0]
  u = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(key, (batch,))) / batch
  return jnp.minimum((1.0 - u**power) * count, count - 1).astype(jnp.int32)


def clean_image_loss(x_hat: Array, x: Array, schedule: Schedule, t: Array, max_weight: float) -> Array:
  """The loss of v-prediction for predictions of the clean image x [B, H, W, C].

  The weight, 1 / sigma^2, is bounded, so that the cleanest images do not drown the others.
  """
  weight = jnp.minimum(1.0 / schedule.sigma[t]**2, max_weight)
  return jnp.mean(weight[:, None, None, None] * (x_hat - x) ** 2)


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation,
              ema_decay: float) -> Callable[[PriorTrainState, Batch, Array], tuple[PriorTrainState, dict[str, Array]]]:
  """The training step (state, batch, key) -> (state, metrics); `key` is the run's, the same at every step."""
  def step(state: PriorTrainState, batch: Batch, key: Array) -> tuple[PriorTrainState, dict[str, Array]]:
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # A young average forgets its random start quickly: the decay grows as (1 + n) / (10 + n).
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + n) / (10.0 + n))
    ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
    return (PriorTrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state),
            dict(loss=loss, grad_norm=optax.tree.norm(grads)))

  return jax.jit(step, donate_argnums=0, compiler_options=compilation.unet_options())


def batches(data: Mapping[str, np.ndarray], batch_size: int, seed: int,
            first_step: int) -> Iterator[dict[str, np.ndarray]]:
  """Batches drawn without replacement within an epoch; the order depends only on (seed, step)."""
  count = len(next(iter(data.values())))
  per_epoch = count // batch_size
  step = first_step
  while True:
    epoch, offset = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for i in range(offset, per_epoch):
      take = np.sort(order[i * batch_size:(i + 1) * batch_size])
      yield {name: values[take] for name, values in data.items()}
      step += 1


def fit(out: pathlib.Path, state: PriorTrainState, step_fn: Callable[..., tuple[PriorTrainState, dict[str, Array]]],
        data: Mapping[str, np.ndarray], settings: Mapping[str, Any], seed: int, *,
        look: Callable[[PriorTrainState], None], log_every: int, save_every: int, sheet_every: int) -> PriorTrainState:
  """The steps that are left, from `out`'s newest checkpoint or `state`; returns the last state.

  Draws a progress bar; every number is also a line of `out`/metrics.jsonl.

  Args:
    data: arrays of n examples, of which `step_fn` is given `settings["batch_size"]`.
    look: called with the state every `sheet_every` steps, but not after the last one.
  """
  with ocp.CheckpointManager(out.absolute() / "checkpoints", options=ocp.CheckpointManagerOptions(
      max_to_keep=2, save_interval_steps=save_every)) as manager:
    if manager.latest_step() is not None:
      state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(
          jax.tree.map(ocp.utils.to_shape_dtype_struct, state)))
      print(f"going on from step {int(state.step)} of {out / 'checkpoints'}")
      _forget_after(out / "metrics.jsonl", int(state.step))
    first = int(state.step)
    feed = batches(data, settings["batch_size"], seed, first)
    key, start, losses = jax.random.key(seed), time.perf_counter(), []
    bar = tqdm.trange(first, settings["steps"], initial=first, total=settings["steps"], desc="training the prior",
                      mininterval=5.0)
    for step in bar:
      state, metrics = step_fn(state, next(feed), key)
      losses.append(metrics["loss"])
      if (step + 1) % log_every == 0:
        loss = float(np.mean(jax.device_get(losses)))
        losses = []
        bar.set_postfix(loss=f"{loss:.4f}")
        with open(out / "metrics.jsonl", "a") as log:
          log.write(json.dumps(dict(step=step + 1, loss=loss, seconds=round(time.perf_counter() - start, 1))) + "\n")
      manager.save(step + 1, args=ocp.args.StandardSave(state), force=step + 1 == settings["steps"])
      if (step + 1) % sheet_every == 0 and step + 1 < settings["steps"]:
        look(state)
  return state


def has_checkpoint(out: pathlib.Path) -> bool:
  """Whether there is a checkpoint to go on from."""
  # A save that was cut off leaves a folder of a longer name.
  return any(path.name.isdecimal() for path in (out / "checkpoints").glob("*"))


def check_same_settings(path: pathlib.Path, settings: dict[str, Any],
                        defaults: Mapping[str, Any] | None = None) -> None:
  """Keep the settings of a run beside it; refuse to go on with others (but for the number of steps).

  Args:
    defaults: of settings that a run may lack, having been begun before there were such.
  """
  settings = dict(settings, steps=None)
  if not path.exists():
    write_json(path, settings)
  before = {**(defaults or {}), **json.loads(path.read_text(encoding="utf-8"))}
  for name in sorted(before.keys() | settings.keys()):
    if before.get(name) != settings.get(name):
      raise ValueError(f"{name}={settings.get(name)!r}, but the run in {path.parent} was begun with "
                       f"{before.get(name)!r}; use the same or another --out")


def run_recipe(train: Callable[..., pathlib.Path], description: str, defaults: Mapping[str, Any], out: str) -> None:
  """The command line of a recipe, its flags named as the arguments of its `train`, after the folder `out`."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help="folder of the run")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of images, initialisation and noise")
  parser.add_argument("--init", type=pathlib.Path, help="start from the weights of this prior (a folder)")
  parser.add_argument("--steps", type=flag_types.positive, default=defaults["steps"], help="optimiser steps")
  parser.add_argument("--batch_size", type=flag_types.positive, default=defaults["batch_size"], help="images a step")
  parser.add_argument("--num_images", type=flag_types.positive, default=defaults["num_images"],
                      help="training images to render")
  for name, things in (("front_weight", "things with a front"), ("chair_weight", "of those, chairs")):
    if name in defaults:
      parser.add_argument(f"--{name}", type=float, default=defaults[name],
                          help=f"how much more often {things} are shown than else")
  parser.add_argument("--log_every", type=flag_types.positive, default=50, help="steps between records of the loss")
  parser.add_argument("--save_every", type=flag_types.positive, default=500, help="steps between checkpoints")
  parser.add_argument("--sheet_every", type=flag_types.positive, default=2000, help="steps between sample sheets")
  args = vars(parser.parse_args())
  if args["batch_size"] > args["num_images"]:
    parser.error(f"--batch_size={args['batch_size']} must be from 1 to --num_images={args['num_images']}")
  compilation.prepare()
  try:
    print(f"the prior lies in {train(args.pop('out'), **args)}")
  except (ValueError, OSError) as error:
    parser.error(str(error))


def _forget_after(log: pathlib.Path, step: int) -> None:
  """Take the records of steps that will be taken again out of the log."""
  if log.exists():
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
    write_atomically(log, lambda path: path.write_text(kept, encoding="utf-8"))
