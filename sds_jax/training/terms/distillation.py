"""Score distillation from one prior, as a term of the step."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sds_jax.diffusion.distillation import DistillationAux
from sds_jax.diffusion.estimators import find
from sds_jax.diffusion.scalars import ScalarSpec
from sds_jax.generators.protocol import Draws, Generator, Views
from sds_jax.priors.prior import Prior
from sds_jax.prng import as_threefry
from sds_jax.settings.distillation import DistillationSettings
from sds_jax.training import conditions as conditions_lib
from sds_jax.training.control_images import control_images, with_control
from sds_jax.training.distil import distil
from sds_jax.training.step import Context
from sds_jax.types import Array, Params, RenderOutput
from sds_jax.views import cameras


class Distilled(NamedTuple):
  """The result of distilling a step's views.

  `loss` is the scalar, `aux` the estimator's values, `x` [B, *x_shape] the encoded images.
  """
  loss: Array
  aux: DistillationAux
  x: Array


@dataclasses.dataclass(frozen=True)
class Distillation:
  """The gradient of one prior with one estimator.

  Attributes:
    generator: renders the source of an edit anew, through the views' own draws.
    prior: the frozen diffusion model.
    settings: estimator, guidance, range of t.
    weight: of the gradient; may change over the run.
    views: number of views of a whole step.
    seed: of the run; CDS draws its one noise from the seed.
    as_latent: whether normals and opacity are the latent.
    part: name of this prior's part in `Context.prior_params` and `Context.conditions`; "": both are the prior's own.
    stream: number that tells the random draws of several priors apart; 0: the step's own keys.
    prefix: of the metric `grad_norm`.
  """
  generator: Generator
  prior: Prior
  settings: DistillationSettings
  weight: ScalarSpec
  views: int
  seed: int
  as_latent: bool = False
  part: str = ""
  stream: int = 0
  prefix: str = "sds_"

  def __call__(self, views: Views, context: Context) -> tuple[Array, dict[str, Array]]:
    """Returns the scalar whose gradient is the distillation's.

    The metric is the mean norm of the cotangents.
    """
    distilled = self.distil(views, context)
    return distilled.loss, {f"{self.prefix}grad_norm": jnp.mean(distilled.aux.grad_norm)}

  def distil(self, views: Views, context: Context) -> Distilled:
    """Estimates the gradient of the views.

    The views are encoded, and the prior is conditioned on their prompts and poses.
    """
    draws = context.draws
    # Stream 0 keeps the step's own keys: a second prior changes no draw of the first.
    if self.stream:
      draws = draws._replace(keys={name: jax.random.fold_in(key, self.stream) for name, key in draws.keys.items()})
    prior_params = context.prior_params[self.part] if self.part else context.prior_params
    conditions = context.conditions[self.part] if self.part else context.conditions
    needs = find(self.settings.estimator).needs
    camera = None if views.cameras is None else cameras.camera_features(views.cameras)
    x = self._encode(prior_params, views, draws)
    inputs = dict(score=context.score_params)
    if "camera" in needs and camera is not None:
      inputs["camera"] = camera
    if "image" in needs:
      inputs["image"] = resize_images(views.images, self.prior.image_size)
    if "source" in needs:
      source = context.state.estimator
      source_views = self.generator.render(source["params"], source["occupancy"], context.draws)
      # With the keys of the object itself, so that the randomness of the encoder is equal in both.
      inputs["source_x"] = self._encode(prior_params, source_views, draws)
      # The cameras of both are equal, and a ControlNet reads the geometry of the source.
      inputs["source_cond"] = self.condition(prior_params, dict(conditions, views=conditions["source"]),
                                             views._replace(render=source_views.render), draws)
    cond = self.condition(prior_params, conditions, views, draws)
    loss, aux = distil(self.settings, self.weight, self.prior, prior_params, x, cond, draws.keys, draws.progress,
                       inputs, draws.index, views=self.views, seed=self.seed)
    return Distilled(loss, aux, x)

  def _encode(self, prior_params: Params, views: Views, draws: Draws) -> Array:
    if self.as_latent:
      return geometry_as_latent(views.render, self.prior.x_shape)
    return encode_views(self.prior, prior_params, views.images, draws.keys["encode"], draws.index)

  def condition(self, prior_params: Params, conditions: Any, views: Views, draws: Draws) -> dict[str, Any]:
    """Returns the conditions of the guided denoiser for each view.

    The conditions are `cond`, `uncond`, and those of the estimator.
    """
    if views.azimuth is not None:
      cond = conditions_lib.of_views(self.prior, prior_params, self.settings, conditions, views.cameras, views.azimuth,
                                     views.elevation, draws.progress)
      return with_control(cond, self.control_images(views)) if self.prior.control else cond
    extra = {}
    if self.prior.camera_dim and views.cameras is not None:
      extra = dict(camera=self.prior.camera_features(views.cameras))
    choose: Callable[[Array], Array] = lambda texts: texts[views.frame]  # noqa: E731
    return conditions_lib.sides(self.settings, conditions, choose, extra, draws.progress)

  def control_images(self, views: Views) -> Array:
    """Returns the images [B, S, S, 3] that the prior's ControlNet reads."""
    return control_images(self.prior.control, views.render, views.cameras, self.prior.image_size)


def encode_views(prior: Prior, prior_params: Params, images: Array, key: Array, index: Array) -> Array:
  """Encodes images [B, H, W, 3] as x [B, *x_shape].

  Image b has the key fold_in(key, index[b]).
  """
  key = as_threefry(key)

  def one(image: Array, i: Array) -> Array:
    return prior.encode(prior_params, image[None], jax.random.fold_in(key, i))[0]

  return jax.vmap(one)(images, index)


def resize_images(images: Array, size: int) -> Array:
  """Returns images [B, H, H, 3] at [B, size, size, 3]."""
  wanted = (images.shape[0], size, size, 3)
  return images if images.shape == wanted else jax.image.resize(images, wanted, "linear")


def geometry_as_latent(out: RenderOutput, x_shape: tuple[int, ...]) -> Array:
  """Returns normals and opacity [B, H, W] as a latent [B, *x_shape].

  The latent has four channels, each in [-1, 1].

  At the start of a run Stable Diffusion's latents resemble images closely enough for this to give an object its shape,
  without the autoencoder and its gradient (Fantasia3D, arXiv:2303.13873, section 3.1; stable-dreamfusion's warm-up).
  """
  n, alpha = out.normals, out.opacity[..., None]
  x = jnp.concatenate([n + alpha - 1.0, 2.0 * alpha - 1.0], axis=-1)  # 2 sum_i w_i (n_i + 1) / 2 - 1, and the mask
  return jax.image.resize(x, (x.shape[0], *x_shape), "linear")
