r"""Text to 3D.

    python run.py --config=configs/text.py --config.prompt="a green cone on top of a blue cylinder"
    python run.py --config=configs/text.py:sd15 --config.prompt="a DSLR photo of a hamburger"
    python run.py --config=configs/text.py:dreamfusion,shapeworld --config.prompt="a red cube"

The first uses the prior that ships with the package. After the colon stand a recipe, a prior, or both:

  recipe   dreamfusion, dreamfusionacc, threestudio_sd, threestudio_if; what they are, and where they differ from what
           was published, is told in `sds_jax/training/recipes.py`. Without a prior each takes its own.
  prior    shapeworld (the one that ships), sd15, sd21-base, sd21, if (also if-m, if-l, if-xl), an id of the Hugging
           Face hub ("owner/name"), or a folder. Without a recipe, a published one is run as threestudio runs its kind.

Any setting of `sds_jax/training/config.py` is overridden in the same way as the prompt.
"""
from sds_jax.training import recipes


def get_config(arg: str = "shapeworld"):
  """The settings of a recipe and a prior; see above."""
  return recipes.from_words(arg)
