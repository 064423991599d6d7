"""Tests that a text prior refuses unknown words in the negative prompt as well."""
import pytest

from sds_jax import settings
from sds_jax.tasks import Text3DTask


def test_unknown_words_in_the_negative_prompt(tiny_config):
  load = lambda changes: Text3DTask(settings.validate(tiny_config(changes))).load_prior()  # noqa: E731
  with pytest.raises(settings.ConfigError, match="config.negative_prompt='blurry' is beyond this prior: .*'blurry'"):
    load({"negative_prompt": "blurry"})
  for changes in ({"negative_prompt": "a blue sphere"}, {"negative_prompt": "x", "prior.allow_unknown_words": True}):
    load(changes)
