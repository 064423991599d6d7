"""Flags that the commands of priors share: how a single file is read, networks from elsewhere, and LoRAs."""
from __future__ import annotations

import argparse


def add_file_options(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of single files, of networks from elsewhere and of LoRAs to a command line."""
  parser.add_argument("--prediction_type", default="", choices=("", "epsilon", "v_prediction"),
                      help="of a single file of Stable Diffusion 2.x, which does not tell (default: as the file tells)")
  parser.add_argument("--ema", action="store_true", help="take the averaged weights of a single file")
  parser.add_argument("--config", default="",
                      help="folder in diffusers' format whose small files describe a single file")
  parser.add_argument("--unet", default="", help="file or folder of another U-Net")
  parser.add_argument("--vae", default="", help="file or folder of another VAE")
  parser.add_argument("--lora", default="", help="LoRA files FILE:SCALE or FILE, separated by commas")


def file_options(args: argparse.Namespace) -> dict[str, str | bool]:
  """Returns the fields of `base.Options` that the flags of `add_file_options` set."""
  return {name: getattr(args, name) for name in ("prediction_type", "ema", "config", "unet", "vae", "lora")}
