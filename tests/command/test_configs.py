"""The settings that come with each prior's name are legal, and those of published models are not ShapeWorld's."""
import importlib.util
from pathlib import Path

import pytest

from sds_jax.priors import sources
from sds_jax.training import validation

PATH = Path(__file__).resolve().parents[2] / "configs" / "text.py"


@pytest.fixture(scope="module")
def get_config():
  spec = importlib.util.spec_from_file_location("text_config", PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config


@pytest.mark.parametrize("name", [*sources.HUB_IDS, "owner/name", "DeepFloyd/IF-I-M-v1.0"])
def test_published_priors(get_config, name):
  config = validation.validate(get_config(name))
  assert (config.prior.name, config.prior.dtype, config.training.steps) == (name, "bfloat16", 10_000)
  pixels = "if" in name.lower()
  assert config.distillation.guidance_scale == ((20.0,) if pixels else (100.0,))
  assert config.distillation.guidance_convention == "dreamfusion"


@pytest.mark.parametrize("argument", [(), ("shapeworld",), ("",)])
def test_the_shipped_prior(get_config, argument):
  config = validation.validate(get_config(*argument))
  assert (config.prior.name, config.prior.dtype, config.field.name) == ("shapeworld", "float32", "mlp")
