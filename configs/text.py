r"""Settings of text-to-3D.

    python run.py --config=configs/text.py --config.prompt="a green cone on top of a blue cylinder"
    python run.py --config=configs/text.py:sd15 --config.prompt="a DSLR photo of a hamburger"
    python run.py --config=configs/text.py:dreamfusion,shapeworld --config.prompt="a red cube"

The first command uses the prior that ships with the package. After the colon stand a recipe, a prior, a representation
of your own, or several of them with commas in between:

  recipe          dreamfusion, dreamfusionacc, mvdream, threestudio_sd, threestudio_if;
                  `sds_jax/settings/recipes/text3d.py` has their settings and says where these differ from the
                  publication. Without a prior a recipe takes its own.
  prior           shapeworld (which ships), sd15, sd21-base, sd21, sdxl, sdxl-turbo, mvdream, if (also if-m, if-l,
                  if-xl), an id of the Hugging Face hub ("owner/name"), or a folder. Without a recipe a published prior
                  is run as threestudio runs its kind.
  representation  package.module:function, a 3D generator of your own in place of the package's field.

The command line overrides any setting in the same way as the prompt. `sds_jax/settings/text3d.py` lists all settings.
"""
from sds_jax.settings.recipes import text3d


def get_config(words: str = "shapeworld"):
  """Returns the settings of a recipe, a prior and a representation; see above."""
  return text3d.from_words(words)
