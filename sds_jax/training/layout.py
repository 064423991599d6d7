"""The devices of a run: one device, a mesh under `jax.jit`, or `jax.pmap`. The loop does not depend on the choice.

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
    mesh: of these, with the axis VIEWS.
    shard_prior: whether each has a part of the prior only.
  """
  mode: str
  mesh: Mesh
  shard_prior: bool = False

  @property
  def share(self) -> Share:
    """What a step is told of the views of a device."""
    return Share() if self.mode in ("one", "scenes") else Share(VIEWS, self.mesh.size)

  def __str__(self) -> str:
    split = ", the prior in parts" * self.shard_prior
    return "" if self.mode == "one" else f" for {self.mesh.size} devices by {self.mode}{split}"

  def put_state(self, state: TrainState) -> TrainState:
    """A state of this process (the same in all) where the step wants it."""
    return self.put(state)

  def put_conditions(self, conditions: Any) -> Any:
    """The same of what the prior is told."""
    return self.put(conditions)

  def put(self, tree: Any) -> Any:
    """A tree of arrays of this process (the same in all) on all devices."""
    return jax.tree.map(self._put if self.mode != "one" else jax.device_put, tree)

  def shapes(self, prior_params: Params) -> Params:
    """What `put_prior` has put, as `jax.ShapeDtypeStruct` of the whole parameters."""
    axes = 1 if self.mode == "pmap" else 0
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype), prior_params)

  def put_prior(self, params: Params) -> Params:
    """The prior's parameters where they belong."""
    if not self.shard_prior:
      return self.put(params)
    return jax.tree.map(lambda leaf: _onto(leaf, NamedSharding(self.mesh, self._part(leaf))), params)

  def local(self, tree: Any) -> Any:
    """What `put_state` has put, in this process again; all processes have to ask."""
    if self.mode == "one":
      return tree
    return jax.tree.map(_first, tree) if self.mode == "jit" else jax.tree.map(lambda x: _first(x)[0], tree)

  def fetch(self, tree: Any) -> Any:
    """`local`, as numpy arrays."""
    fetched = jax.device_get(jax.tree.map(_first, tree) if self.mode != "one" else tree)
    return jax.tree.map(lambda leaf: leaf[0], fetched) if self.mode == "pmap" else fetched

  def compile(self, step: StepFn, state: Any, fixed: tuple) -> Callable:
    """The step (of `share`) as one executable that takes over the state's memory.

    Args:
      state, fixed: its arguments (state, (prior_params, conditions, key)), put where they belong.
    """
    if self.mode == "pmap":
      return jax.pmap(step, axis_name=VIEWS, donate_argnums=0, devices=self._local_or_all()).lower(
          state, *fixed).compile()
    if self.mode == "jit":
      parts = jax.tree.map(self._part, fixed[0]) if self.shard_prior else P()
      step = jax.shard_map(_gathering(step, parts) if self.shard_prior else step, mesh=self.mesh,
                           in_specs=(P(), parts, P(), P()), out_specs=P(), check_vma=False)
    return jax.jit(step, donate_argnums=0, compiler_options=compilation.unet_options()).lower(state, *fixed).compile()

  def _local_or_all(self) -> list[jax.Device] | None:
    """Of pmap: all devices of a job of several processes, else those of the mesh."""
    return None if jax.process_count() > 1 else list(self.mesh.devices.flat)

  def _put(self, leaf: jax.Array) -> jax.Array:
    if self.mode != "pmap":
      return _onto(leaf, NamedSharding(self.mesh, P()))
    here = [device for device in self.mesh.devices.flat if device.process_index == jax.process_index()]
    copies = [jax.device_put(leaf[None], device) for device in here]
    sharding = NamedSharding(Mesh(np.array(here), (VIEWS,)), P(VIEWS))
    return jax.make_array_from_single_device_arrays((len(here), *leaf.shape), sharding, copies)

  def _part(self, leaf: Any) -> P:
    """How a parameter is taken apart: along its longest axis that the devices divide, if it is large enough."""
    fitting = [axis for axis, size in enumerate(leaf.shape) if size % self.mesh.size == 0]
    if leaf.size < SMALLEST_PART or not fitting:
      return P()
    axis = max(fitting, key=lambda axis: leaf.shape[axis])
    return P(*[None] * axis, VIEWS)


@dataclasses.dataclass(frozen=True)
class SceneLayout(DeviceLayout):
  """The devices of many scenes: each device has some of them, with all their views (`scenes.over_scenes`).

  The last scene is there several times where they would not come out even; nobody else knows of it.

  Attributes:
    scenes: N, how many there are.
  """
  scenes: int = 1

  def __str__(self) -> str:
    return f" for {self.scenes} scenes, devices: {self.mesh.size}"

  def _put_scenes(self, leaf: Any) -> jax.Array:
    """[N, ...] onto the devices."""
    lacking = -self.scenes % self.mesh.size
    filled = np.concatenate([leaf, *[np.asarray(leaf)[-1:]] * lacking]) if lacking else leaf
    return _onto(filled, NamedSharding(self.mesh, P(SCENES)))

  def put_state(self, state: TrainState) -> TrainState:
    """Scenes spread over the devices; the number of the step is everywhere."""
    spread = jax.tree.map(self._put_scenes, dataclasses.replace(state, step=None))
    return dataclasses.replace(spread, step=self.put(state.step))

  def put_conditions(self, conditions: Any) -> Any:
    """[N, ...], like the scenes."""
    return jax.tree.map(self._put_scenes, conditions)

  def local(self, tree: Any) -> Any:
    """All scenes, as numpy arrays."""
    return self.fetch(tree)

  def fetch(self, tree: Any) -> Any:
    """All scenes, as numpy arrays."""
    several = jax.process_count() > 1
    fetched = multihost_utils.process_allgather(tree, tiled=True) if several else jax.device_get(tree)
    return jax.tree.map(lambda leaf: leaf[:self.scenes] if leaf.ndim else leaf, fetched)

  def compile(self, step: StepFn, state: Any, fixed: tuple) -> Callable:
    """The step of many scenes; nothing passes between the devices."""
    step = jax.shard_map(step, mesh=self.mesh, in_specs=(_STATE_PARTS, P(), P(SCENES), P()),
                         out_specs=(_STATE_PARTS, P(SCENES)), check_vma=False)
    return jax.jit(step, donate_argnums=0, compiler_options=compilation.unet_options()).lower(state, *fixed).compile()


_STATE_PARTS = TrainState(step=P(), params=P(SCENES), opt_state=P(SCENES), occupancy=P(SCENES), estimator=P(SCENES),
                          ema=P(SCENES), health=P(SCENES))


def make_scene_layout(parallel: ParallelSettings, scenes: int) -> SceneLayout:
  """Returns the devices of a run of many scenes.

  Raises:
    ConfigError: there are not as many.
  """
  count = _count(parallel)
  return SceneLayout("scenes", Mesh(np.array(jax.devices()[:count]), (SCENES,)), scenes=scenes)


def make_layout(parallel: ParallelSettings, views: int, together: int = 1) -> DeviceLayout:
  """Returns the devices of a run.

  Args:
    parallel: the settings.
    views: number of views of a step.
    together: number of neighbouring views that one device must hold: one of each particle and of each of its frames.

  Raises:
    ConfigError: there are fewer devices, or the devices do not divide the views of a step.
  """
  count = _count(parallel)
  _check_views(views, count, together)
  mode = "one" if count == 1 and parallel.mode == "jit" else parallel.mode
  return DeviceLayout(mode, Mesh(np.array(jax.devices()[:count]), (VIEWS,)), parallel.shard_prior and mode != "one")


def _count(parallel: ParallelSettings) -> int:
  """Returns the number of devices of the settings."""
  asked, there = parallel.devices, jax.device_count()
  if asked > there:
    raise ConfigError(f"config.parallel.devices={asked} is more than the {there} that there are; set it to {there}, or "
                      "0 for all")
  if jax.process_count() > 1 and asked not in (0, there):
    raise ConfigError(f"config.parallel.devices={asked}, but all {there} devices of the {jax.process_count()} "
                      "processes take part in a job of several processes; set it to 0")
  return asked or there


def _check_views(views: int, devices: int, together: int) -> None:
  """Raises ConfigError unless every device gets as many whole groups of `together` views as every other."""
  unit = devices * together
  if devices == 1 or views % unit == 0:
    return
  each = f" times {together} things" if together > 1 else ""
  fewer = max(count for count in range(1, devices) if count == 1 or views % (count * together) == 0)
  remedy = f", or take fewer devices with --config.parallel.devices={fewer}" if jax.process_count() == 1 else ""
  raise ConfigError(f"config.training.views={views} cannot be spread evenly over the {devices} devices{each}: set it "
                    f"to {unit} or a multiple{remedy}")


def _onto(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
  """An array that every process has, laid out over devices of all processes."""
  if jax.process_count() == 1:
    return jax.device_put(leaf, sharding)
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_onto(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
  there = np.asarray(leaf)
  return jax.make_array_from_callback(leaf.shape, sharding, lambda index: there[index])


def _first(leaf: jax.Array) -> jax.Array:
  return leaf.addressable_data(0)


def _gathering(step: StepFn, parts: Any) -> StepFn:
  """`step` whose prior comes in parts, which are put together in it."""
  def whole(leaf: jax.Array, part: P) -> jax.Array:
    return jax.lax.all_gather(leaf, VIEWS, axis=len(part) - 1, tiled=True) if len(part) else leaf

  def gathered(state: Any, prior_params: Params, conditions: Any, key: jax.Array) -> Any:
    return step(state, jax.tree.map(whole, prior_params, parts), conditions, key)

  return gathered
