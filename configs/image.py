r"""Image to 3D.

    python run.py --config=configs/image.py --config.image=picture.png
    python run.py --config=configs/image.py:zero123-xl --config.image=picture.png --config.picture.elevation_deg=10
    python run.py --config=configs/image.py:magic123 --config.image=picture.png --config.prompt="a hamburger"

The first uses the prior that ships with the package. After the colon stand a recipe, a prior, or both in this order
with a comma between them:

  recipe  zero123, stable-zero123, magic123: what threestudio has published for them. Without a prior each takes its
          own.
  prior   shapeworld-views (the one that ships), zero123, zero123-xl, stable-zero123, an id of the Hugging Face hub
          ("owner/name"), or a folder. Without a recipe it is run by the one that is nearest.

The picture's transparency says what the object is; without any, the background is removed. The settings are those of
`sds_jax/training/image3d_config.py`.
"""
from sds_jax.training import image3d_config


def get_config(arg: str = "shapeworld-views"):
  """The settings of a recipe and a prior; see above."""
  return image3d_config.from_words(arg)
