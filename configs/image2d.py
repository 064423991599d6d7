r"""Settings of images from prompts, by any parameterization of an image.

    python run.py --config=configs/image2d.py --config.prompt="a red cube"
    python run.py --config=configs/image2d.py:fourier --config.prompt="a green cone on top of a blue cylinder"
    python run.py --config=configs/image2d.py:siren,sd15 --config.prompt="a DSLR photo of a hamburger"

After the colon stand a generator, a prior, or both with a comma in between:

  generator  pixels, fourier, cppn, siren, gaussians, shared, symmetric, translucent, texture; or
             package.module:function, a function of your own: (size) -> an object with init(key) -> params and
             apply(params, key) -> images [1, size, size, 3] in [0, 1].
  prior      as in `configs/text.py`.

Name the generator here, not by --config.generator.name, since the words set its learning rate, prompts and viewpoint,
too. `sds_jax/settings/image2d.py` lists all settings. On two CPU cores and with the shipped prior a run takes less than
a minute.
"""
from sds_jax.settings.recipes import image2d


def get_config(words: str = "pixels"):
  """Returns the settings of a generator and a prior; see above."""
  return image2d.from_words(words)
