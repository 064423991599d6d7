r"""Pictures, by any generator.

    python run.py --config=configs/image2d.py --config.prompt="a red cube"
    python run.py --config=configs/image2d.py:fourier --config.prompt="a green cone on top of a blue cylinder"
    python run.py --config=configs/image2d.py:siren,sd15 --config.prompt="a DSLR photo of a hamburger"

After the colon stand a generator, a prior, or both with a comma between them:

  generator  pixels, fourier, cppn, siren, gaussians, shared, symmetric, translucent, texture; or
             package.module:function, a function of your own: (size) -> an object with init(key) -> params and
             apply(params, key) -> images [1, size, size, 3] in [0, 1].
  prior      as in `configs/text.py`.

Say the generator here rather than by --config.generator.name: its learning rate, prompts and viewpoint come along. The
settings are those of `sds_jax/training/image2d_config.py`. On two CPU cores each takes less than a minute with the
shipped prior.
"""
from sds_jax.training import image2d_config


def get_config(arg: str = "pixels"):
  """The settings of a generator and a prior; see above."""
  return image2d_config.from_words(arg)
