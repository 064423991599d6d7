"""Argument types of whole numbers for argparse; argparse names the flag in the error message."""
from __future__ import annotations

import argparse


def positive(text: str) -> int:
  """Parses a count, at least 1.

  Raises:
    argparse.ArgumentTypeError: any other text.
  """
  return _parse_whole_number(text, 1, "at least 1")


def seed(text: str) -> int:
  """Parses a seed, from 0 to 2^31 - 1.

  Raises:
    argparse.ArgumentTypeError: any other text.
  """
  # Larger numbers are the roots of sample photos and view scores (`sample_photos.ROOT_SEED`).
  return _parse_whole_number(text, 0, "from 0 to 2^31 - 1", 2**31 - 1)


def _parse_whole_number(text: str, low: int, legal: str, high: int | None = None) -> int:
  try:
    value = int(text)
  except ValueError:
    value = low - 1  # out of range, so that both mistakes share the message below
  if value < low or (high is not None and value > high):
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {legal}")
  return value
