"""Types of whole numbers for argparse: what is out of range is refused as what is no number is, flag and all."""
from __future__ import annotations

import argparse


def positive(text: str) -> int:
  """A number of things, at least one."""
  return _whole(text, 1, "at least 1")


def seed(text: str) -> int:
  """The seed of a data set or a run; from 2^31 on are the roots of pictures and scores (`sample_photos.ROOT_SEED`)."""
  return _whole(text, 0, "from 0 to 2^31 - 1", 2**31 - 1)


def _whole(text: str, low: int, legal: str, high: int | None = None) -> int:
  try:
    value = int(text)
  except ValueError:
    value = low - 1
  if value < low or (high is not None and value > high):
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number that is {legal}")
  return value
