"""The values that an estimator takes where the settings leave them open; estimators of the user's own."""
import dataclasses
import json
import sys
import types

import pytest

from sds_jax import schema, settings
from sds_jax.diffusion.estimators import ESTIMATORS, Draw, Estimator
from sds_jax.settings.image3d import conditioned_on_one
from sds_jax.settings.recipes import image3d

OPEN = [field.name for field in dataclasses.fields(Draw)]


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of an estimator of the user's own."""
  alpha: schema.Scheduled = schema.setting(0.5, schema.scheduled(0.0, 1.0), "a share")


def estimate(denoise_fn, params, schedule, x, t, eps, cond, keys, *, alpha=0.5):
  return alpha * eps, dict(eps_hat=eps, x0_hat=x)


MINE = Estimator("mine", estimate, options=Options, published=Draw(guidance_scale=9.0))


@pytest.mark.parametrize("kind, prior", [("published", "sd15"), ("small", "shapeworld")])
def test_open_values_are_those_of_before(frozen, changed, kind, prior):
  for name, expected in frozen["resolved"][kind].items():
    d = settings.validate(changed({"distillation.estimator": name, "prior.name": prior})).distillation
    assert {key: getattr(d, key) for key in OPEN} == expected, name


def test_values_that_are_given_win(changed):
  vsd = settings.validate(changed({"distillation.estimator": "vsd", "distillation.guidance_scale": 4.0})).distillation
  assert vsd.guidance_scale == 4.0 and vsd.weighting == "sigma2"
  score = settings.validate(changed({"distillation.sds.guidance_scale": (5.0,), "distillation.estimator": "score"}))
  assert score.distillation.guidance_scale == 5.0


@pytest.mark.parametrize("estimator", sorted(set(conditioned_on_one()) - {"csd"}))
@pytest.mark.parametrize("words, scale", [("zero123", 3.0), ("magic123", 5.0), ("shapeworld-views", 3.0)])
def test_a_photo_needs_less_guidance_than_a_text(estimator, words, scale):
  config = image3d.from_words(words)
  config.distillation.estimator, config.prompt = estimator, "a red cube" if words == "magic123" else ""
  d = settings.validate(config).distillation
  assert d.guidance_scale == scale and d.guidance_convention == "diffusers"
  config.distillation.guidance_scale = 7.0
  assert settings.validate(config).distillation.guidance_scale == 7.0


def test_resolved_settings_are_legal_again(changed):
  """A run stores its settings with nothing left open; export and render check them again."""
  for name in ESTIMATORS:
    once = settings.validate(changed({"distillation.estimator": name}))
    assert settings.validate(schema.to_config(once)) == once


def test_the_prompt_of_the_source_is_read_from_its_run(changed, mistake, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(dict(config=dict(prompt="a blue cone"))), encoding="utf-8")
  changes = {"distillation.estimator": "dds", "distillation.source": str(tmp_path)}
  assert settings.validate(changed(changes)).distillation.source_prompt == "a blue cone"
  assert settings.validate(changed({**changes, "distillation.source_prompt": "x"})).distillation.source_prompt == "x"
  (tmp_path / "config.json").write_text("{", encoding="utf-8")
  message = mistake(changed(changes))
  assert f"config.distillation.source={str(tmp_path)!r}" in message and "cannot be read" in message


def test_a_registered_estimator_has_its_group_at_once(changed, mistake, monkeypatch):
  monkeypatch.setitem(ESTIMATORS, "mine", MINE)
  assert settings.defaults().distillation.mine.alpha == 0.5
  d = settings.validate(changed({"distillation.estimator": "mine", "distillation.mine.alpha": 1})).distillation
  assert d.mine == Options(alpha=1.0) and d.guidance_scale == 9.0
  assert "config.distillation.mine.alpha=2.0" in mistake(changed({"distillation.mine.alpha": 2.0}))
  assert "mine" in mistake(changed({"distillation.estimator": "mein"}))
  assert "`distillation.mine.alpha`" in settings.reference_markdown("text3d")


@pytest.fixture
def module(monkeypatch):
  made = types.ModuleType("an_estimator_of_my_own")
  made.MINE = MINE
  monkeypatch.setitem(sys.modules, made.__name__, made)
  return made.__name__


def test_an_estimator_in_a_module_of_the_users_own(changed, mistake, module):
  config = changed({"distillation.estimator": f"{module}:MINE"})
  d = settings.validate(config).distillation
  assert d.mine == Options() and d.guidance_scale == 9.0 and "mine" not in config.distillation
  settings.add_users_options(config)
  config.distillation.mine.alpha = ((0.0, 1.0), (1.0, 0.0))
  assert settings.validate(config).distillation.mine.alpha == ((0.0, 1.0), (1.0, 0.0))
  with config.distillation.mine.unlocked():
    config.distillation.mine.beta = 1.0
  assert "config.distillation.mine.beta is not a setting; " in mistake(config)


@pytest.mark.parametrize("name", ["csd", "weighting", "sds"])
def test_a_module_whose_estimator_has_the_name_of_a_setting(changed, mistake, module, monkeypatch, name):
  monkeypatch.setattr(sys.modules[module], "MINE", dataclasses.replace(MINE, name=name))
  assert f"an estimator cannot be named {name!r}" in mistake(changed({"distillation.estimator": f"{module}:MINE"}))


@pytest.mark.parametrize("name", ["my-est", "2nd", "class", ""])
def test_a_name_that_cannot_be_a_group(name):
  with pytest.raises(ValueError, match="must be a Python identifier"):
    dataclasses.replace(MINE, name=name)


def test_a_registered_estimator_by_its_module(changed):
  by_module = changed({"distillation.estimator": "sds_jax.diffusion.estimators.ism:SPEC"})
  options = settings.validate(changed({"distillation.estimator": "ism"})).distillation.ism
  assert settings.validate(by_module).distillation.ism == options


@pytest.mark.parametrize("name", ["no_such_module:MINE", "an_estimator_of_my_own:OURS", "math:pi"])
def test_a_module_without_an_estimator(changed, mistake, module, name):
  message = mistake(changed({"distillation.estimator": name}))
  assert f"config.distillation.estimator={name!r} is not legal" in message


def test_an_estimator_may_not_hide_a_setting(monkeypatch):
  monkeypatch.setitem(ESTIMATORS, "clip_norm", dataclasses.replace(MINE, name="clip_norm"))
  with pytest.raises(settings.ConfigError, match="rename the estimator"):
    settings.defaults()
