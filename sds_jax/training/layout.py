"""The devices of a run: one device, a mesh under `jax.jit`, or `jax.pmap`. The loop is the same for all three.

Every device holds the whole state. The views of a step are spread over the devices. Every device holds the whole prior,
or with `parallel.shard_prior` a part of the prior, and an all-gather inside the step collects the parts; XLA schedules
the transfers.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from sds_jax import compilation
from sds_jax.schema import ConfigError
from sds_jax.settings.training import ParallelSettings
from sds_jax.training.parallel import SCENES, VIEWS, Share
from sds_jax.training.state import TrainState
from sds_jax.training.step import StepFn
from sds_jax.types import Params

SMALLEST_PART = 2**14
"""Size of the smallest parameter of a prior that is sharded."""


@dataclasses.dataclass(frozen=True)
class DeviceLayout:
  """The devices of a run.

  Attributes:
    mode: "one" device, or "jit" or "pmap" over several.
    mesh: the devices, with the axis VIEWS.
    shard_prior: whether each device holds only a part of the prior.
  """
  mode: str
  mesh: Mesh
  shard_prior: bool = False

  @property
  def share(self) -> Share:
    """The share of a device in the views of a step."""
    # A scene is on one device with all its views.
    return Share() if self.mode in ("one", "scenes") else Share(VIEWS, self.mesh.size)

  def __str__(self) -> str:
    split = ", the prior in parts" * self.shard_prior
    return "" if self.mode == "one" else f" for {self.mesh.size} devices by {self.mode}{split}"

  def put_state(self, state: TrainState) -> TrainState:
    """Places a state onto the devices as the step expects.

    The state is equal in all processes.
    """
    return self.put(state)

  def put_conditions(self, conditions: Any) -> Any:
    """Places the conditions of the prior onto the devices as the step expects.

    The conditions are equal in all processes.
    """
    return self.put(conditions)

  def put(self, tree: Any) -> Any:
    """Copies a tree of arrays, equal in all processes, onto every device."""
    return jax.tree.map(self._put if self.mode != "one" else jax.device_put, tree)

  def shapes(self, prior_params: Params) -> Params:
    """Returns the shapes of the whole parameters, as `jax.ShapeDtypeStruct`, from the result of `put_prior`."""
    # Under pmap every array has a leading axis of devices.
    axes = 1 if self.mode == "pmap" else 0
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype), prior_params)

  def put_prior(self, params: Params) -> Params:
    """Places the prior's parameters: whole on every device, or in parts with `shard_prior`."""
    if not self.shard_prior:
      return self.put(params)
    return jax.tree.map(lambda leaf: _onto(leaf, NamedSharding(self.mesh, self._part(leaf))), params)

  def local(self, tree: Any) -> Any:
    """Returns the result of `put_state` or `put` on a single device of this process.

    Every process must call.
    """
    if self.mode == "one":
      return tree
    return jax.tree.map(_first, tree) if self.mode == "jit" else jax.tree.map(lambda x: _first(x)[0], tree)

  def fetch(self, tree: Any) -> Any:
    """Returns the result of `put_state` or `put` as numpy arrays.

    Every process must call.
    """
    fetched = jax.device_get(jax.tree.map(_first, tree) if self.mode != "one" else tree)
    return jax.tree.map(lambda leaf: leaf[0], fetched) if self.mode == "pmap" else fetched

  def compile(self, step: StepFn, state: Any, fixed: tuple) -> Callable:
    """Compiles the step of `share` to one executable, to which the state is donated.

    Args:
      step: the step.
      state, fixed: arguments of the step, fixed = (prior_params, conditions, key), already on the devices.
    """
    if self.mode == "pmap":
      # Lowered and compiled here: a first call would compile inside the loop, and run out of memory only there.
      return jax.pmap(step, axis_name=VIEWS, donate_argnums=0, devices=self._local_or_all()).lower(
          state, *fixed).compile()
    if self.mode == "jit":
      parts = jax.tree.map(self._part, fixed[0]) if self.shard_prior else P()
      # check_vma=False: otherwise `grad` with respect to replicated parameters sums over the devices by itself. The
      # step's own `pmean` then changes nothing, and the gradient is silently too large by the number of devices.
      step = jax.shard_map(_gathering(step, parts) if self.shard_prior else step, mesh=self.mesh,
                           in_specs=(P(), parts, P(), P()), out_specs=P(), check_vma=False)
    return jax.jit(step, donate_argnums=0, compiler_options=compilation.unet_options()).lower(state, *fixed).compile()

  def _local_or_all(self) -> list[jax.Device] | None:
    """Returns the devices for pmap.

    In a job of several processes None, which means all devices; else those of the mesh.
    """
    return None if jax.process_count() > 1 else list(self.mesh.devices.flat)

  def _put(self, leaf: jax.Array) -> jax.Array:
    if self.mode != "pmap":
      return _onto(leaf, NamedSharding(self.mesh, P()))
    here = [device for device in self.mesh.devices.flat if device.process_index == jax.process_index()]
    # JAX no longer has `device_put_replicated`, so the copies are joined by hand.
    copies = [jax.device_put(leaf[None], device) for device in here]
    sharding = NamedSharding(Mesh(np.array(here), (VIEWS,)), P(VIEWS))
    return jax.make_array_from_single_device_arrays((len(here), *leaf.shape), sharding, copies)

  def _part(self, leaf: Any) -> P:
    """Returns the partition of a parameter: its longest axis that the number of devices divides.

    Small parameters are not partitioned.
    """
    # A split that does not come out even would need padding, and small arrays are not worth an all-gather.
    fitting = [axis for axis, size in enumerate(leaf.shape) if size % self.mesh.size == 0]
    if leaf.size < SMALLEST_PART or not fitting:
      return P()
    axis = max(fitting, key=lambda axis: leaf.shape[axis])
    return P(*[None] * axis, VIEWS)


@dataclasses.dataclass(frozen=True)
class SceneLayout(DeviceLayout):
  """The devices of many scenes: each device holds some scenes with all their views (`scenes.over_scenes`).

  The scenes are padded with copies of the last scene to a multiple of the device count; `fetch` drops the padding.

  Attributes:
    scenes: N, the number of scenes without padding.
  """
  scenes: int = 1

  def __str__(self) -> str:
    return f" for {self.scenes} scenes, devices: {self.mesh.size}"

  def _put_scenes(self, leaf: Any) -> jax.Array:
    """Pads [N, ...] and spreads the first axis over the devices."""
    padding = -self.scenes % self.mesh.size
    padded = np.concatenate([leaf, *[np.asarray(leaf)[-1:]] * padding]) if padding else leaf
    return _onto(padded, NamedSharding(self.mesh, P(SCENES)))

  def put_state(self, state: TrainState) -> TrainState:
    """Spreads the scenes over the devices.

    The number of the step is copied onto every device.
    """
    spread = jax.tree.map(self._put_scenes, dataclasses.replace(state, step=None))
    return dataclasses.replace(spread, step=self.put(state.step))

  def put_conditions(self, conditions: Any) -> Any:
    """Spreads conditions [N, ...] over the devices like the scenes."""
    return jax.tree.map(self._put_scenes, conditions)

  def local(self, tree: Any) -> Any:
    """Returns all scenes as numpy arrays, without padding.

    Every process must call.
    """
    return self.fetch(tree)

  def fetch(self, tree: Any) -> Any:
    """Returns all scenes as numpy arrays, without padding.

    Every process must call.
    """
    several = jax.process_count() > 1
    # tiled: the scenes of all processes are joined, without a further axis of processes.
    fetched = multihost_utils.process_allgather(tree, tiled=True) if several else jax.device_get(tree)
    return jax.tree.map(lambda leaf: leaf[:self.scenes] if leaf.ndim else leaf, fetched)

  def compile(self, step: StepFn, state: Any, fixed: tuple) -> Callable:
    """Compiles the step of many scenes, which needs no communication between the devices."""
    step = jax.shard_map(step, mesh=self.mesh, in_specs=(_STATE_PARTS, P(), P(SCENES), P()),
                         out_specs=(_STATE_PARTS, P(SCENES)), check_vma=False)
    return jax.jit(step, donate_argnums=0, compiler_options=compilation.unet_options()).lower(state, *fixed).compile()


_STATE_PARTS = TrainState(step=P(), params=P(SCENES), opt_state=P(SCENES), occupancy=P(SCENES), estimator=P(SCENES),
                          ema=P(SCENES), health=P(SCENES))


def make_scene_layout(parallel: ParallelSettings, scenes: int) -> SceneLayout:
  """Returns the devices of a run of many scenes.

  Raises:
    ConfigError: the machine has fewer devices than the settings ask for.
  """
  count = _count(parallel)
  return SceneLayout("scenes", Mesh(np.array(jax.devices()[:count]), (SCENES,)), scenes=scenes)


def make_layout(parallel: ParallelSettings, views: int, together: int = 1) -> DeviceLayout:
  """Returns the devices of a run.

  Args:
    parallel: the settings.
    views: number of views of a step.
    together: number of neighbouring views that one device must hold: one of each particle and of each of its frames,
      or a group of views of each particle.

  Raises:
    ConfigError: the machine has fewer devices than the settings ask for, or their number does not divide the views.
  """
  count = _count(parallel)
  _check_views(views, count, together)
  mode = "one" if count == 1 and parallel.mode == "jit" else parallel.mode
  # Not `jax.make_mesh`: its axes are explicit by default, and gathers of ambiguous sharding then raise.
  return DeviceLayout(mode, Mesh(np.array(jax.devices()[:count]), (VIEWS,)), parallel.shard_prior and mode != "one")


def _count(parallel: ParallelSettings) -> int:
  """Returns the number of devices of the settings."""
  count, available = parallel.devices, jax.device_count()
  if count > available:
    raise ConfigError(f"config.parallel.devices={count} exceeds the {available} available devices; set it to "
                      f"{available}, or to 0 for all")
  if jax.process_count() > 1 and count not in (0, available):
    raise ConfigError(f"config.parallel.devices={count}, but all {available} devices of the {jax.process_count()} "
                      "processes take part in a job of several processes; set it to 0")
  return count or available


def _check_views(views: int, devices: int, together: int) -> None:
  """Raises ConfigError unless every device gets equally many whole groups of `together` views."""
  unit = devices * together
  if devices == 1 or views % unit == 0:
    return
  each = f" times the {together} views that belong together" if together > 1 else ""
  fewer = max(count for count in range(1, devices) if count == 1 or views % (count * together) == 0)
  remedy = f", or use fewer devices with --config.parallel.devices={fewer}" if jax.process_count() == 1 else ""
  raise ConfigError(f"config.training.views={views} cannot be spread evenly over the {devices} devices{each}: set it "
                    f"to {unit} or a multiple{remedy}")


def _onto(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
  """Places an array that every process holds onto devices of all processes."""
  if jax.process_count() == 1:
    return jax.device_put(leaf, sharding)
  # Typed keys have no numpy form, so their data are placed and wrapped again.
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_onto(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
  values = np.asarray(leaf)
  return jax.make_array_from_callback(leaf.shape, sharding, lambda index: values[index])


def _first(leaf: jax.Array) -> jax.Array:
  # Not leaf[0], which is a gather over the devices: some 10 ms instead of 0.2 ms.
  return leaf.addressable_data(0)


def _gathering(step: StepFn, parts: Any) -> StepFn:
  """Returns `step` for a prior in parts, which an all-gather inside the step joins."""
  def whole(leaf: jax.Array, part: P) -> jax.Array:
    # The last entry of a partition is the split axis; tiled: the parts are joined along that axis.
    return jax.lax.all_gather(leaf, VIEWS, axis=len(part) - 1, tiled=True) if len(part) else leaf

  def gathered(state: Any, prior_params: Params, conditions: Any, key: jax.Array) -> Any:
    return step(state, jax.tree.map(whole, prior_params, parts), conditions, key)

  return gathered
