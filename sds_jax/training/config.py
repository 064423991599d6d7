"""Every setting of a run with its default, and what is legal for it.

A config is an `ml_collections.ConfigDict`; `configs/*.py` start from `default()` and change fields. `validate` looks at
all of it before anything is loaded and returns a frozen copy. A scalar that may change during training is a tuple: a
constant `(v,)`, or `((p0, v0), (p1, v1), ...)`, linear between the given fractions p of the run. These are the weights
in `loss`; in `distillation`, guidance_scale, guidance_rescale, perp_neg_scale, t_min, t_max and clip_norm, and of its
groups csd.negative_weight, ism.delta_t, sdi.inversion, cds.clip and hifa.image_weight; in `field`,
paper_mlp.variance and hashgrid.open_levels.
"""
from __future__ import annotations

import ml_collections
from ml_collections import ConfigDict


MAX_STEPS = 2**24
"""No run has as many steps: what is drawn goes by the number of the step, and that of a restart in the bits above."""


def default() -> ConfigDict:
  """The settings of text-to-3D with the shipped prior, sized for two CPU cores; a fresh, unlocked ConfigDict."""
  config = ConfigDict()
  config.job = "text3d"  # which tree of settings this is; training/defaults.py
  config.prompt = "a green cone on top of a blue cylinder"
  config.prompts_file = ""  # a text file, one prompt a line: as many objects at once, and `prompt` does not count
  config.negative_prompt = ""  # what the unconditional side of guidance is told, as in diffusers
  config.seed = 0
  config.workdir = ""  # empty: runs/<prompt>-<seed>
  config.resume = "auto"  # auto: go on if there is a checkpoint; must: it has to be there; never: start anew
  config.prior = _prior()
  config.distillation = _distillation()
  config.camera = _camera()
  config.shading = _shading()
  config.field = _field()
  config.background = _background()
  config.render = _render()
  config.loss = ConfigDict(dict(
      sds=(1.0,),
      orientation=((0.0, 1e-4), (0.33, 1e-2)),  # needs normals: counts in shaded steps only (from a picture: in all)
      opacity=(0.0,),  # mean of sqrt(opacity^2 + 0.01)
      entropy=(0.0,)))  # binary entropy of the opacity: 0 where a pixel is surely empty or surely full
  config.optimizer = ConfigDict(dict(  # b1, b2, eps: of adam and adamw; sgd takes b1 as momentum, adan its own betas
      name="adam", learning_rate=1e-2, warmup_steps=20, final_fraction=0.1, b1=0.9, b2=0.99, eps=1e-15, clip_norm=0.0,
      ema_decay=0.0,  # what is shown is an average of the last parameters with this decay; 0: the parameters themselves
      background_factor=1.0))  # the learning rate of a learnt background is this times that of the field
  config.training = ConfigDict(dict(
      steps=500, views=2,
      particles=1,  # objects that are made together and share VSD's second network; views is a multiple of them
      log_every=10, render_every=100, checkpoint_every=100, keep_checkpoints=2,
      keep_period=0,  # checkpoints of steps that are multiples of this are kept for good; 0: none
      guidance_every=0))  # sheets of what the prior sees, progress/guidance_*.png; 0: none
  config.divergence = ConfigDict(dict(  # updates that are not finite are dropped; what happens where they don't stop
      patience=20,  # so many of them in a row take the run back to its last good checkpoint, with other draws
      restarts=3,  # how often, before the run gives up
      learning_rate_factor=0.5))  # of each restart
  config.parallel = ConfigDict(dict(
      devices=0,  # over how many the views of a step are spread; 0: all there are
      mode="jit",  # jit: jax.jit over a mesh; pmap: the same step under jax.pmap
      together=-1,  # scenes of a prompts_file that a device makes at a time; 0: all, -1: chosen by the backend
      shard_prior=False))  # each device keeps a part of the prior only, and has the others send theirs in every step
  config.occupancy = ConfigDict(dict(resolution=32, every=8, decay=0.9, start_step=32))
  config.export = ConfigDict(dict(
      mesh_resolution=96, mesh_threshold=0.0,  # 0: chosen from the size of a voxel
      image_size=128, turntable_frames=48, turntable_elevation_deg=20.0, num_samples=64, mesh=True, turntable=True))
  return config


def _prior() -> ConfigDict:
  return ConfigDict(dict(
      name="shapeworld",
      path="",  # a folder in diffusers format, instead of a name
      dtype="float32",
      random_weights=False,  # of the shapes of the published prior `name`, whose files are not read: for measurements
      vae_remat=False,  # latent priors: less memory for the gradient through the VAE's encoder, more time
      allow_unknown_words=False))


def _distillation() -> ConfigDict:
  config = ConfigDict(dict(
      estimator="sds",  # a name of `distil.NAMES`; what it is: sds_jax/diffusion/estimators.py
      # Where "auto" or () stand, the estimator's own choice counts: `sds` below, or training/choices.py.
      weighting="auto",
      guidance_convention="auto",  # diffusers: eps_u + s (eps_c - eps_u); dreamfusion: eps_c + omega (eps_c - eps_u)
      guidance_scale=(),
      t_min=(), t_max=(),  # fractions of the schedule
      t_warp="auto",  # how fast t_min and t_max move over the run: linear, sqrt; dreamtime: t follows DreamTime's pace
      guidance_rescale=(0.0,),  # arXiv:2305.08891, section 3.4, on eps; 0: off, 1: the spread of the conditional eps
      # Perp-Neg (arXiv:2304.04968): none, or the texts and weights of threestudio or stable_dreamfusion, which are in
      # views/perp_neg.py. It interpolates between views itself, whatever view_words says; the network costs twice.
      perp_neg="none",
      perp_neg_scale=(1.0,),  # multiplies its weights; stable-dreamfusion's negative_w is -2 times this
      latent_until=0.0,  # priors of latents: up to this fraction of the run normals and opacity are the latent
      t_sampler="stratified",  # over the views of a step: uniform, stratified, antithetic
      antithetic_noise=False,  # views 2 i and 2 i + 1 get eps and -eps
      clip_norm=(0.0,),  # of each view's cotangent; (0.0,): no clipping
      view_words="nearest",  # nearest, blended or none
      source="", source_prompt=""))  # dds, pds: the folder of the run that is edited (empty: this run's own beginning,
  # described by source_prompt)
  config.sds = ConfigDict(dict(  # also of score and ldiff
      weighting="sigma2", guidance_convention="diffusers", guidance_scale=(3.0,), t_min=(0.02,), t_max=(0.98,),
      t_warp="linear"))
  for name, settings in _own_settings().items():
    config[name] = ConfigDict(settings)
  return config


def _own_settings() -> dict[str, dict]:
  """Estimator -> what only it has; the values are published ones (training/choices.py says where from).

  `start` of an inversion: -1 is 0, but 0.15 for a prior that predicts the clean image. `sdi.inversion` is the omega of
  guidance on the way up over that of the estimate.
  """
  return dict(
      csd=dict(negative_prompt="oversaturated color, ugly, tiling, low quality, noisy",
               negative_weight=((0.0, 0.0), (0.5, 1.0))),
      nfsd=dict(negative_prompt="unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, "
                "low-resolution, gloomy", null_until=0.2),
      bridge=dict(target_words=", detailed high resolution, high quality, sharp",
                  source_words=", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, "
                  "noisy, malformed", begins=0.8),  # SDS up to this fraction of the run
      vsd=dict(rank=4, learning_rate=1e-4, forget_camera=0.1),
      asd=dict(shift=0.1),
      ism=dict(delta_t=((0.0, 0.1), (0.3, 0.08)), delta_s=0.2, steps=5, start=-1.0),
      sdi=dict(inversion=(-1.0,), eta=0.3, stride=0.1, steps=10, start=-1.0),
      cds=dict(gap=0.1, spread=0.2, clip=((0.0, 2.0), (1.0, 8.0))),
      hifa=dict(image_weight=(0.01,)))


def _camera() -> ConfigDict:
  return ConfigDict(dict(
      elevation_deg=(-10.0, 90.0), distance=(2.4, 3.0), fov_deg=(42.0, 50.0),
      focal=(0.0, 0.0),  # if set: focal length over image height, drawn evenly; fov_deg is then for outputs alone
      position_jitter=0.05, target_std=0.02, up_std=0.01, stratified=True))


def _shading() -> ConfigDict:
  return ConfigDict(dict(
      albedo_until=0.2,  # fraction of the run with no shading at all
      lambertian=0.5, textureless=0.0,  # probabilities after that; the rest is albedo
      ambient=0.5,  # the rest is diffuse
      ambient_spread=0.0,  # of the diffuse light, a random amount up to this is ambient instead
      distance=(0.8, 1.5)))


def _field() -> ConfigDict:
  return ConfigDict(dict(
      name="mlp", bound=0.8, density="softplus", blob="linear", blob_scale=10.0, blob_radius=0.35,
      density_bias=0.0,
      mlp=dict(hidden=32, depth=2, num_octaves=4, activation="silu"),
      paper_mlp=dict(hidden=128, blocks=5, num_octaves=8, variance=(2e-3,)),  # blur, world units squared
      hashgrid=dict(
          levels=8, features=2, coarsest=8, finest=128, log2_table=17, hidden=32, depth=1,
          open_levels=(0.0,))))  # how many levels count, the coarsest first; (0.0,): all of them


def _background() -> ConfigDict:
  return ConfigDict(dict(
      name="plain",  # plain, white, or learnt from the ray's direction: mlp, harmonics
      random_colour=0.0,  # probability that a view has one random colour in place of a learnt background
      mlp=dict(hidden=32, depth=1, num_octaves=3),
      harmonics=dict(degree=3, hidden=16, depth=2)))


def _render() -> ConfigDict:
  return ConfigDict(dict(
      height=64, width=64, num_samples=16, candidates=48, block_points=-1,  # -1: chosen by backend; 0: all at once
      milestones=(),  # ((p, size), ...): from the fraction p of the run on, height and width are size
      normals="analytic"))


def scalar_spec(value: tuple) -> float | tuple:
  """A scheduled scalar as `diffusion.scalars` takes it: a constant tuple `(v,)` becomes v."""
  return value[0] if len(value) == 1 and not isinstance(value[0], (tuple, list)) else value


def freeze(config: ConfigDict) -> ml_collections.FrozenConfigDict:
  """A hashable, immutable copy."""
  return ml_collections.FrozenConfigDict(config)
