"""Shared parts of the recipes of the shipped priors: optimiser, training step, and a resumable loop."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm

from sds_jax import compilation, terminal
from sds_jax.priors.loading.files import write_atomically, write_json
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import flag_types
from sds_jax.types import Array, Params, PyTree, Schedule

Batch = Mapping[str, Array]
LossFn = Callable[[Params, Batch, Array], Array]
"""(params, batch, key) -> scalar; consumes the key."""


class PriorTrainState(PyTree):
  """The state in a checkpoint.

  Attributes:
    step: [] int32, number of finished steps.
    params: the parameters.
    ema: exponential moving average of `params`, the weights of the finished prior.
    opt_state: of optax.
  """
  step: Array
  params: Params
  ema: Params
  opt_state: Any


def make_optimizer(steps: int, settings: Mapping[str, Any]) -> optax.GradientTransformation:
  """Builds AdamW with gradient clipping and a learning-rate schedule.

  The rate warms up, stays constant, and decays linearly to 0.

  Before the decay begins, a run does not depend on `steps`, so a run can be shortened or extended half-way.

  Args:
    steps: length of the run.
    settings: learning_rate, warmup (steps), decay (share of `steps`), clip_norm, weight_decay.
  """
  decay_steps = max(int(settings["decay"] * steps), 1)
  rate = optax.join_schedules(
      [optax.linear_schedule(0.0, settings["learning_rate"], settings["warmup"]),
       optax.constant_schedule(settings["learning_rate"]),
       optax.linear_schedule(settings["learning_rate"], 0.0, decay_steps)],
      [settings["warmup"], steps - decay_steps])
  return optax.chain(optax.clip_by_global_norm(settings["clip_norm"]),
                     optax.adamw(rate, b2=0.99, weight_decay=settings["weight_decay"]))


def new_state(params: Params, optimizer: optax.GradientTransformation) -> PriorTrainState:
  """Builds the initial state on the first device."""
  state = PriorTrainState(step=jnp.zeros((), jnp.int32), params=params, ema=jax.tree.map(jnp.copy, params),
                     opt_state=optimizer.init(params))
  # Restored states are committed to a device. A committed fresh state gives a resumed run the same compiled program.
  return jax.device_put(state, jax.devices()[0])


def draw_times(key: Array, batch: int, schedule: Schedule, power: float) -> Array:
  """Draws stratified times t [batch] int32; consumes `key`.

  The fraction of the schedule is 1 - u^power with u uniform; power > 1 is denser towards pure noise.
  """
  # At pure noise only the condition determines the object. At low noise the object shows through, and the network can
  # ignore the text.
  count = schedule.alpha.shape[0]
  u = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(key, (batch,))) / batch
  # u = 0 would give `count`, past the last index.
  return jnp.minimum((1.0 - u**power) * count, count - 1).astype(jnp.int32)


def clean_image_loss(x_hat: Array, x: Array, schedule: Schedule, t: Array, max_weight: float) -> Array:
  """Computes the v-prediction loss [] of predicted clean images.

  |v_hat - v|^2 equals |x_hat - x|^2 / sigma_t^2 (arXiv:2202.00512, appendix D).

  Args:
    t: [B] integer times.
    max_weight: upper bound of 1 / sigma_t^2.
  """
  # Without the bound the cleanest images of a batch would dominate its mean.
  weight = jnp.minimum(1.0 / schedule.sigma[t]**2, max_weight)
  return jnp.mean(weight[:, None, None, None] * (x_hat - x) ** 2)


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation,
              ema_decay: float) -> Callable[[PriorTrainState, Batch, Array], tuple[PriorTrainState, dict[str, Array]]]:
  """Builds the compiled step (state, batch, key) -> (state, metrics).

  The key belongs to the run and is the same at every step; the step folds in its number. The state is donated.
  """
  def step(state: PriorTrainState, batch: Batch, key: Array) -> tuple[PriorTrainState, dict[str, Array]]:
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The decay grows as (1 + n) / (10 + n), so a young average forgets its random start quickly.
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + n) / (10.0 + n))
    ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
    return (PriorTrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state),
            dict(loss=loss, grad_norm=optax.tree.norm(grads)))

  return jax.jit(step, donate_argnums=0, compiler_options=compilation.unet_options())


def batches(data: Mapping[str, np.ndarray], batch_size: int, seed: int,
            first_step: int) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches without replacement within an epoch.

  The order depends on (seed, step) only, so a resumed run continues the sequence.

  Args:
    data: arrays with n examples on the leading axis.
  """
  count = len(next(iter(data.values())))
  per_epoch = count // batch_size
  step = first_step
  while True:
    epoch, offset = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for i in range(offset, per_epoch):
      # Sorted, so that numpy reads the rows in the order of memory.
      take = np.sort(order[i * batch_size:(i + 1) * batch_size])
      yield {name: values[take] for name, values in data.items()}
      step += 1


def fit(out: pathlib.Path, state: PriorTrainState, step_fn: Callable[..., tuple[PriorTrainState, dict[str, Array]]],
        data: Mapping[str, np.ndarray], settings: Mapping[str, Any], seed: int, *,
        on_sheet: Callable[[PriorTrainState], None], log_every: int, save_every: int,
        sheet_every: int) -> PriorTrainState:
  """Trains from the newest checkpoint, or from `state`.

  Draws a progress bar and appends each record of the loss to `out`/metrics.jsonl.

  Args:
    out: folder of the run.
    state: the start of a run without a checkpoint, and the structure of a restored state.
    step_fn: result of `make_step`.
    data: arrays with n examples on the leading axis; a step takes `settings["batch_size"]` of them.
    settings: of the recipe; `steps` and `batch_size` are read here.
    seed: of the order of the data and of the key of the run.
    on_sheet: called with the state every `sheet_every` steps, except after the last step.
    log_every, save_every: steps between records of the loss, and between checkpoints.
  """
  with ocp.CheckpointManager(out.absolute() / "checkpoints", options=ocp.CheckpointManagerOptions(
      max_to_keep=2, save_interval_steps=save_every)) as manager:
    if manager.latest_step() is not None:
      state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(
          jax.tree.map(ocp.utils.to_shape_dtype_struct, state)))
      print(f"going on from step {int(state.step)} of {out / 'checkpoints'}")
      # The killed run may have logged steps after its last checkpoint; those steps are taken again.
      _drop_log_lines_after(out / "metrics.jsonl", int(state.step))
    # From the restored state, so that the data goes on where the checkpoint was taken.
    first = int(state.step)
    feed = batches(data, settings["batch_size"], seed, first)
    key, start, losses = seeded_key(seed), time.perf_counter(), []
    bar = tqdm.trange(first, settings["steps"], initial=first, total=settings["steps"], desc="training the prior",
                      mininterval=5.0)
    for step in bar:
      state, metrics = step_fn(state, next(feed), key)
      # Losses stay on the device until the next record: reading each would wait for each step.
      losses.append(metrics["loss"])
      if (step + 1) % log_every == 0:
        loss = float(np.mean(jax.device_get(losses)))
        losses = []
        bar.set_postfix(loss=f"{loss:.4f}")
        with open(out / "metrics.jsonl", "a") as log:
          log.write(json.dumps(dict(step=step + 1, loss=loss, seconds=round(time.perf_counter() - start, 1))) + "\n")
      manager.save(step + 1, args=ocp.args.StandardSave(state), force=step + 1 == settings["steps"])
      if (step + 1) % sheet_every == 0 and step + 1 < settings["steps"]:
        on_sheet(state)
  return state


def has_checkpoint(out: pathlib.Path) -> bool:
  """Tells whether the run has a complete checkpoint."""
  # An interrupted save leaves a folder with a suffix, so only decimal names count.
  return any(path.name.isdecimal() for path in (out / "checkpoints").glob("*"))


def check_same_settings(path: pathlib.Path, settings: dict[str, Any],
                        defaults: Mapping[str, Any] | None = None) -> None:
  """Stores the settings of a run, or checks stored settings.

  The number of steps may change between the starts of a run.

  Args:
    path: settings.json in the folder of the run.
    settings: of this start.
    defaults: values of settings introduced after the run began.

  Raises:
    ValueError: a setting differs from the stored value.
  """
  settings = dict(settings, steps=None)
  if not path.exists():
    write_json(path, settings)
  stored = {**(defaults or {}), **json.loads(path.read_text(encoding="utf-8"))}
  for name in sorted(stored.keys() | settings.keys()):
    if stored.get(name) != settings.get(name):
      raise ValueError(f"{name}={settings.get(name)!r}, but the run in {path.parent} was begun with "
                       f"{name}={stored.get(name)!r}; use the stored value, or another --out")


def run_recipe(train: Callable[..., pathlib.Path], description: str, defaults: Mapping[str, Any], out: str) -> None:
  """Runs the command line of a recipe.

  The flags are the arguments of `train`.

  Args:
    train: function of the recipe, called with the folder and the flags; returns the folder of the prior.
    description: text of --help.
    defaults: settings of the recipe.
    out: default folder of the run.
  """
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--out", type=terminal.user_path, default=pathlib.Path(out), help="folder of the run")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of images, initialisation and noise")
  parser.add_argument("--init", type=terminal.user_path, help="start from the weights of this prior (a folder)")
  parser.add_argument("--steps", type=flag_types.positive, default=defaults["steps"], help="optimiser steps")
  parser.add_argument("--batch_size", type=flag_types.positive, default=defaults["batch_size"], help="images a step")
  parser.add_argument("--num_images", type=flag_types.positive, default=defaults["num_images"],
                      help="training images to render")
  # Only the view recipe has these settings.
  for name, kinds in (("front_weight", "kinds with a front"), ("chair_weight", "chairs, a further factor")):
    if name in defaults:
      parser.add_argument(f"--{name}", type=float, default=defaults[name],
                          help=f"frequency relative to other kinds: {kinds}")
  parser.add_argument("--log_every", type=flag_types.positive, default=50, help="steps between records of the loss")
  parser.add_argument("--save_every", type=flag_types.positive, default=500, help="steps between checkpoints")
  parser.add_argument("--sheet_every", type=flag_types.positive, default=2000, help="steps between sample sheets")
  args = vars(parser.parse_args())
  if args["batch_size"] > args["num_images"]:
    parser.error(f"--batch_size={args['batch_size']} must be from 1 to --num_images={args['num_images']}")
  compilation.prepare()
  try:
    print(f"wrote the prior to {train(args.pop('out'), **args)}")
  except (ValueError, OSError) as error:
    parser.error(str(error))


def _drop_log_lines_after(log: pathlib.Path, step: int) -> None:
  """Removes the records after `step` from metrics.jsonl."""
  if log.exists():
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
    write_atomically(log, lambda path: path.write_text(kept, encoding="utf-8"))
