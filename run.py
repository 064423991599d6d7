"""Text to 3D: `python run.py --config=configs/text.py --config.prompt="a red cube"`.

`--mode=export|render|evaluate --workdir=...` makes the outputs of a finished or interrupted run again from its
checkpoint.
"""
from sds_jax.commands.main import main

if __name__ == "__main__":
  main()
