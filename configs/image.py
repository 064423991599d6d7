r"""Settings of image-to-3D.

    python run.py --config=configs/image.py --config.image=photo.png
    python run.py --config=configs/image.py:zero123-xl --config.image=photo.png --config.picture.elevation_deg=10
    python run.py --config=configs/image.py:magic123 --config.image=photo.png --config.prompt="a hamburger"

The first command uses the prior that ships with the package. After the colon stand a recipe, a prior, or both in this
order with a comma in between; besides, package.module:function, a 3D generator of your own in place of the package's
field:

  recipe  zero123, stable-zero123, magic123: the settings that threestudio has published for them. Without a prior a
          recipe takes its own.
  prior   shapeworld-views (which ships), zero123, zero123-xl, stable-zero123, an id of the Hugging Face hub
          ("owner/name"), or a folder. Without a recipe a prior is run by the nearest recipe.

The photo's transparency separates the object from its background; without transparency the background is removed.
`sds_jax/settings/image3d.py` lists all settings.
"""
from sds_jax.settings.recipes import image3d


def get_config(words: str = "shapeworld-views"):
  """Returns the settings of a recipe and a prior; see above."""
  return image3d.from_words(words)
