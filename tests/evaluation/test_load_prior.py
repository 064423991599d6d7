"""Words that a prior doesn't know are refused in the negative prompt as well."""
import pytest

from sds_jax.evaluation import modes
from sds_jax.training.validation import ConfigError, validate


def test_unknown_words_in_the_negative_prompt(tiny_config):
  with pytest.raises(ConfigError, match="config.negative_prompt='blurry' is beyond this prior: .*'blurry'"):
    modes.load_prior(validate(tiny_config({"negative_prompt": "blurry"})))
  for changes in ({"negative_prompt": "a blue sphere"}, {"negative_prompt": "x", "prior.allow_unknown_words": True}):
    modes.load_prior(validate(tiny_config(changes)))
