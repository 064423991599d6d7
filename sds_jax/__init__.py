"""Score distillation in JAX: the public names."""
from sds_jax.diffusion.distillation import DistillationAux, inject, score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import cfg_diffusers, cfg_dreamfusion, guided
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.schedules import add_noise, flow_schedule, schedule_from_config, snr
from sds_jax.diffusion.variational import score_loss
from sds_jax.fields.field import make_field
from sds_jax.priors.ddim import ddim
from sds_jax.priors.prior import Prior, build as build_prior
from sds_jax.rendering.render import RenderOptions, render_image, render_rays, render_views
from sds_jax.types import (Camera, DenoiseFn, EncodeFn, FieldFn, FieldOutput, GeneratorFn, Rays, RenderOutput,
                           Schedule)

__version__ = "0.1.0"

__all__ = [
    "Camera", "DenoiseFn", "DistillationAux", "ESTIMATORS", "EncodeFn", "FieldFn", "FieldOutput", "GeneratorFn",
    "Prior", "Rays", "RenderOptions", "RenderOutput", "Schedule", "add_noise", "build_prior", "cfg_diffusers",
    "cfg_dreamfusion", "ddim", "flow_schedule", "guided", "inject", "make_field", "render_image", "render_rays",
    "render_views", "schedule_from_config", "schedule_value", "score_distillation", "score_loss", "snr",
]
