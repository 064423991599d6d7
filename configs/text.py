r"""Text to 3D.

    python run.py --config=configs/text.py --config.prompt="a green cone on top of a blue cylinder"
    python run.py --config=configs/text.py:sd15 --config.prompt="a DSLR photo of a hamburger"

The first uses the prior that ships with the package. A name after the colon picks another one: sd15, sd21-base, sd21,
if (also if-m, if-l, if-xl), or an id of the Hugging Face hub ("owner/name"). Any setting of
`sds_jax/training/config.py` is overridden in the same way as the prompt.

Published models come with the settings of threestudio's `dreamfusion-sd` (IF: `dreamfusion-if`), as far as this package
has what they set. It differs in: rays have `num_samples` samples chosen among `candidates`, not 512; the hash grid's
levels are there from the start; the object lies within a ball of radius 1, not a cube of half-width 2; the background
is one plain random colour a view, not a learnt map; the learning rate is warmed up.
"""
import re

from sds_jax.training import config as config_lib


def get_config(arg: str = "shapeworld"):
  """The default settings with the prior named `arg`."""
  config = config_lib.default()
  config.prior.name = arg or "shapeworld"
  if config.prior.name != "shapeworld":
    _published(config, pixels=re.match(r"(.*/)?if(-|$)", config.prior.name.lower()) is not None)
  return config


def _published(config, pixels: bool):
  config.prompt = "a DSLR photo of a hamburger"
  config.prior.dtype = "bfloat16"
  config.distillation.guidance_convention = "dreamfusion"
  config.distillation.guidance_scale = (20.0,) if pixels else (100.0,)
  config.camera.update(elevation_deg=(-10.0, 90.0 if pixels else 45.0), distance=(1.5, 2.0), fov_deg=(40.0, 70.0),
                       position_jitter=0.1, target_std=0.2, up_std=0.02)
  config.shading.update(albedo_until=0.2, lambertian=0.375, textureless=0.375, ambient=0.1)
  config.field.update(name="hashgrid", bound=1.0, density="softplus", blob="linear", blob_scale=10.0, blob_radius=0.5)
  config.field.hashgrid.update(levels=16, features=2, coarsest=16, finest=4096, log2_table=19, hidden=64, depth=1)
  config.render.update(height=64, width=64, num_samples=64, candidates=256)
  config.loss.update(orientation=((0.0, 10.0), (0.5, 1000.0)), opacity=(1.0,))
  config.optimizer.update(name="adam", learning_rate=1e-2, warmup_steps=100, final_fraction=1.0)
  config.training.update(steps=10_000, views=1, log_every=50, render_every=500, checkpoint_every=1000)
  config.occupancy.update(resolution=32, every=16, start_step=256)
  config.export.update(mesh_resolution=256, image_size=256, turntable_frames=96, num_samples=128)
