"""Records of estimators: published values, arguments at a moment of a run, mistakes in records, look-up by name."""
import dataclasses
import io
import pathlib
import sys
import tokenize
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import schema
from sds_jax.diffusion import estimators
from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS, Draw, Estimator, Moment, find
from sds_jax.diffusion.estimators.base import NEEDS, SecondGradient, fill, options_of
from sds_jax.diffusion.schedules import flow_schedule
from sds_jax.schema import AUTO, number, scheduled, setting

INPUTS = dict.fromkeys(("source_x", "source_cond", "score_fn", "score_params", "score_cond"), "input")
MOMENT = Moment(progress=jnp.float32(0.25), seed=7, t_low=0.4, guidance_scale=4.0, neutral_scale=1.0, inputs=INPUTS)


def residual(denoise_fn, params, schedule, x, t, eps, cond, keys, *, share=1.0):
  """A residual for records of these tests."""
  return -share * eps, dict(eps_hat=0 * eps, x0_hat=x)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options for records of these tests."""
  share: schema.Scheduled = setting(((0.0, 1.0), (1.0, 0.0)), scheduled(0.0, 1.0), "share of eps")


MINE = Estimator("mine", residual, options=Options)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_record_goes_by_its_name_and_its_values_are_legal(name):
  record = ESTIMATORS[name]
  assert record.name == name and find(name) is record
  assert record.paper and record.residual and record.calls and bool(record.source) == (record.published is not None)
  for group in (record.options(), record.published or Draw(), record.small or Draw()):
    assert schema.read(group, schema.to_config(group)) == group


KEYWORDS = {
    "csd": dict(negative_weight=0.5), "nfsd": dict(null_until=0.2), "bridge": dict(bridged=0.0),
    "vsd": dict(score_fn="input", score_params="input", score_cond="input"),
    "dds": dict(source_x="input", source_cond="input"), "pds": dict(source_x="input", source_cond="input"),
    "asd": dict(shift=0.1, t_min=0.4), "ism": dict(delta_t=0.1 - 0.02 * 0.25 / 0.3, delta_s=0.2, steps=5, start=0.0),
    "sdi": dict(inversion_scale=-2.0, eta=0.3, stride=0.1, steps=10, start=0.0),
    "cds": dict(gap=0.1, spread=0.2, clip=3.5, noise_seed=7)}
"""Estimator -> keywords of its function at MOMENT; {} for the others."""


@pytest.mark.parametrize("name", ESTIMATORS)
def test_keywords_at_a_moment(name):
  record, expected = ESTIMATORS[name], KEYWORDS.get(name, {})
  keywords = record.keywords(record.options(), MOMENT)
  assert keywords.keys() == expected.keys()
  for key, value in expected.items():
    assert keywords[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key
  assert all(isinstance(keywords[key], jax.Array) for key in ("negative_weight", "delta_t", "clip") if key in keywords)


def test_an_inversion_begins_higher_for_a_prior_that_predicts_the_image():
  moment = dataclasses.replace(MOMENT, prediction_type="sample")
  for name in ("ism", "sdi"):
    options = ESTIMATORS[name].options()
    assert ESTIMATORS[name].keywords(options, moment)["start"] == 0.15
    assert ESTIMATORS[name].keywords(dataclasses.replace(options, start=0.3), moment)["start"] == 0.3


def test_scheduled_options_are_evaluated_and_constants_are_not_left_as_python_numbers():
  """CSD's negative prompt is asked even where the weight is the constant 0, as long as a run sets the weight."""
  record = ESTIMATORS["csd"]
  keywords = record.keywords(dataclasses.replace(record.options(), negative_weight=0.0), MOMENT)
  assert isinstance(keywords["negative_weight"], jax.Array) and keywords["negative_weight"].dtype == jnp.float32


def test_inputs_that_lack_are_named():
  with pytest.raises(ValueError, match="'dds' needs the inputs source_x, source_cond; source_cond lacks"):
    ESTIMATORS["dds"].keywords(ESTIMATORS["dds"].options(), Moment(inputs=dict(source_x=1)))


def group(**fields):
  """A group of settings whose fields are numbers."""
  return dataclasses.make_dataclass("Options", [
      (name, float, setting(value, number(0.0), name)) for name, value in fields.items()], frozen=True)


PLAIN = lambda d, p, s, x, t, eps, cond, keys: None  # noqa: E731
BARE = dataclasses.make_dataclass("Options", [("share", float, 1.0)], frozen=True)
SOURCED = lambda d, p, s, x, t, eps, cond, keys, *, source_x, source_cond, more: None  # noqa: E731

MISTAKES = {
    "an option that nothing reads": (PLAIN, dict(options=group(strength=1.0)), "nothing reads the option 'strength'"),
    "an argument that nothing supplies": (SOURCED, dict(needs={"source"}), "nothing supplies the argument 'more'"),
    "unknown need": (PLAIN, dict(needs={"sources"}), f"'sources' is not legal: it must be one of {', '.join(NEEDS)}"),
    "a need that the function does not take": (PLAIN, dict(needs={"source"}), "no keyword-only argument 'source_cond'"),
    "a need without its options": (PLAIN, dict(needs={"negative"}), "takes the options negative_prompt, but"),
    "two sources": (SOURCED, dict(needs={"pair", "source"}), "cannot hold both 'pair' and 'source'"),
    "options that are no group": (PLAIN, dict(options=dict), "must be a frozen dataclass of schema.setting fields"),
    "an option without a range": (residual, dict(options=BARE), "the option 'share' has no range and no meaning"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_record_that_contradicts_itself(mistake):
  fn, fields, message = MISTAKES[mistake]
  with pytest.raises(ValueError, match="estimator 'wrong': ") as error:
    Estimator("wrong", fn, **fields)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_options_that_a_translation_leaves_unread():
  record = Estimator("mine", residual, options=group(share=1.0, power=2.0),
                     arguments=lambda options, moment: dict(share=options.share))
  with pytest.raises(ValueError, match="'mine': nothing reads the option 'power': remove it, or take it as a keyword"):
    record.keywords(record.options(), MOMENT)


def test_options_of_a_second_term():
  """fn and term may share the options between them; one that neither reads is an error."""
  def term(options, moment, aux):
    return SecondGradient(aux, aux, options.weight)

  record = Estimator("mine", residual, options=group(share=0.5, weight=2.0), term=term)
  assert record.keywords(record.options(), MOMENT) == dict(share=0.5)
  assert record.second_term(record.options(), MOMENT, 1.0).weight == 2.0
  unread = dataclasses.replace(record, options=group(share=0.5, weight=2.0, other=1.0))
  with pytest.raises(ValueError, match="nothing reads the option 'other'"):
    unread.second_term(unread.options(), MOMENT, 1.0)
  assert MINE.second_term(MINE.options(), MOMENT, 1.0) is None


def test_hifas_term():
  """alpha / sigma (image - decoded), weighted by its option; the decoder gets no gradient."""
  record, schedule, image = ESTIMATORS["hifa"], flow_schedule(4), jnp.full((1, 2, 2, 3), 0.75)
  aux = types.SimpleNamespace(t=jnp.array([0]), x0_hat=jnp.ones((1, 2)))
  moment = Moment(progress=0.5, schedule=schedule, inputs=dict(image=image),
                  decode=lambda x: jnp.full((1, 2, 2, 3), 0.25) * x.mean())
  term = record.second_term(record.options(image_weight=((0.0, 0.0), (1.0, 0.2))), moment, aux)
  np.testing.assert_allclose(term.residual, 3 * 0.5 * np.ones_like(image), rtol=1e-6)
  assert term.at is image and term.weight == pytest.approx(0.1)


def by_gradient(estimator, **more):
  def loss(x):
    return score_distillation(lambda p, z, t, c: z, None, flow_schedule(8), x, jax.random.key(0), None,
                              estimator=estimator, weighting="uniform", **more)[0]

  return np.asarray(jax.grad(loss)(jnp.ones((2, 3))))


@pytest.fixture
def module(monkeypatch):
  """A module of the user's own, with a record, something else, and none."""
  made = types.ModuleType("my_estimators")
  made.MINE, made.NUMBER = MINE, 3
  monkeypatch.setitem(sys.modules, "my_estimators", made)
  return made


def test_by_name_by_record_and_by_function(module, monkeypatch):
  expected = by_gradient(residual, options=dict(share=0.5))
  assert np.abs(expected).max() > 0.1
  for estimator in (MINE, "my_estimators:MINE"):
    np.testing.assert_array_equal(by_gradient(estimator, options=dict(share=0.5)), expected)
  monkeypatch.setitem(ESTIMATORS, "mine", MINE)
  np.testing.assert_array_equal(by_gradient("mine", options=dict(share=0.5)), expected)
  with pytest.raises(TypeError, match="strength"):
    by_gradient("mine", options=dict(strength=1.0))
  with pytest.raises(ValueError, match="'hifa' has a second term at another array than x; give record.fn"):
    by_gradient("hifa")


@pytest.mark.parametrize("name, message", [
    ("sdss", "is not known; legal: sds, score"), ("my_estimators:", "is not known"), (":MINE", "is not known"),
    ("no_such_module:MINE", r"cannot be imported \(ModuleNotFoundError: No module named 'no_such_module'\)"),
    ("my_estimators:THEIRS", r"cannot be imported \(AttributeError: .*THEIRS'\)"),
    ("my_estimators:NUMBER", "is of type int: it must be an Estimator")])
def test_names_that_stand_for_nothing(module, name, message):
  with pytest.raises(ValueError, match=message) as error:
    find(name)
  assert repr(name) in str(error.value) and "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Distillation(Draw):
  """What the functions of this folder read of the settings."""
  estimator: str = "sds"
  perp_neg: str = "none"
  latent_until: float = 0.0
  source: str = ""
  sds: Draw = Draw(guidance_scale=5.0)


OPEN = {field.name: AUTO for field in dataclasses.fields(Draw)}


@pytest.mark.parametrize("settings, message", [
    (dict(estimator="csd", guidance_scale=7.5), "d.guidance_scale=7.5 has no effect with d.estimator='csd': leave it"),
    (dict(estimator="bridge", perp_neg="threestudio"), "d.perp_neg='threestudio' would replace the description"),
    (dict(estimator="hifa", latent_until=0.2), "d.latent_until=0.2 makes latents of normals"),
    (dict(estimator="ism", source="runs/a"), "d.source='runs/a' is what dds or pds edits, but d.estimator='ism': set"),
    (dict(estimator="no.such:SPEC"), "d.estimator='no.such:SPEC' is not legal: estimator 'no.such:SPEC' cannot be"),
])
def test_settings_that_do_not_go_with_an_estimator(settings, message):
  problem, = estimators.problems(Distillation(**{**OPEN, **settings}), "d")
  assert problem.startswith(message)


def test_settings_that_go_with_their_estimator():
  for settings in (dict(estimator="csd"), dict(estimator="csd", guidance_scale=1.0), dict(estimator="dds", source="a"),
                   dict(perp_neg="threestudio"), dict(estimator="sdi", guidance_scale=2.0)):
    assert not list(estimators.problems(Distillation(**{**OPEN, **settings}), "d"))


def test_open_settings_take_the_published_values():
  left_open = Distillation(**OPEN)
  of = lambda name, **how: fill(left_open, ESTIMATORS[name], **{"small": False, **how})  # noqa: E731
  assert of("sds").guidance_scale == of("ldiff").guidance_scale == 5.0
  assert of("pds").guidance_scale == 100.0 and of("pds", small=True).guidance_scale == 20.0
  assert of("csd", small=True).guidance_scale == 1.0 and of("csd", photo=True).guidance_scale == 1.0
  assert of("sdi", photo=True).guidance_convention == "diffusers" and of("sdi", photo=True).guidance_scale == 5.0
  assert of("sdi", photo=True).t_min == ((0.0, 0.98), (1.0, 0.25))
  given = dataclasses.replace(left_open, t_min=0.3)
  assert fill(given, ESTIMATORS["ism"], small=True).t_min == 0.3


def test_options_of_a_group_or_the_defaults():
  options = ESTIMATORS["ism"].options(steps=2)
  assert options_of(types.SimpleNamespace(ism=options), ESTIMATORS["ism"]) is options
  assert options_of(types.SimpleNamespace(), ESTIMATORS["ism"]) == ESTIMATORS["ism"].options()
  assert options_of(Distillation(), ESTIMATORS["sds"]) == ESTIMATORS["sds"].options()


def names_in(path):
  """Identifiers and strings of a file, without documentation."""
  for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
    if token.type == tokenize.NAME:
      yield token.string
    elif token.type == tokenize.STRING and len(token.string) < 20:
      yield token.string.strip("rbf'\"")


def test_a_new_estimator_needs_one_file_and_one_line():
  """Besides its own file, code names an estimator in the collection, and perhaps in the study's notes."""
  root = pathlib.Path(schema.__file__).parent
  files = {path.relative_to(root).as_posix(): set(names_in(path)) for path in root.rglob("*.py")}
  shared = {"diffusion/estimators/__init__.py", "testbed/estimator_settings.py"}
  for name in ESTIMATORS.keys() - {"sds", "score"}:  # the default, and a word that also means a mark
    own = {f"diffusion/estimators/{name}.py", "diffusion/estimators/linear.py"}
    assert {path for path, names in files.items() if name in names} <= shared | own, name
