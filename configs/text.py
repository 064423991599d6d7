r"""Text to 3D.

    python run.py --config=configs/text.py --config.prompt="a green cone on top of a blue cylinder"

uses the prior that ships with the package; a name after the colon picks another one (`configs/text.py:sd15`). Any
setting of `sds_jax/training/config.py` is overridden in the same way as the prompt.
"""
from sds_jax.training import config as config_lib


def get_config(arg: str = "shapeworld"):
  """The default settings with the prior named `arg`."""
  config = config_lib.default()
  config.prior.name = arg or "shapeworld"
  return config
