"""The grammar: every spec survives a round trip, and errors name the mistake."""
import numpy as np
import pytest

from sds_jax.shapeworld import captions, solids
from sds_jax.shapeworld.captions import HELD_OUT, VIEWS, CaptionError, Spec


def test_round_trip_over_all_specs():
  specs = captions.all_specs()
  assert len(specs) == len(set(specs)) == 8 * 11 + (8 * 7) ** 2
  for i, spec in enumerate(specs):
    view = VIEWS[i % 4]
    assert captions.parse(captions.caption(spec)) == spec
    assert captions.parse(captions.caption(spec, view)) == Spec(spec.parts, view)
    assert captions.parse(captions.caption(Spec(spec.parts, view))) == Spec(spec.parts, view)
    assert {*captions.caption(spec, view).replace(",", "").split()} <= captions.WORDS


def test_captions_are_plain_english():
  pair = Spec((("orange", "cone"), ("blue", "cylinder")))
  assert captions.caption(pair) == "an orange cone on top of a blue cylinder"
  assert captions.caption(Spec((("red", "house"),)), "back view") == "a red house, back view"


@pytest.mark.parametrize("text", [
  "a red cube", "A Red  CUBE.", "the red cube", "red cube", "  an red cube . ", "a red cube ."])
def test_parser_is_tolerant(text):
  assert captions.parse(text) == Spec((("red", "cube"),))


@pytest.mark.parametrize("text", [
  "a red cube on top of a blue cone, side view", "Red cube on top of the blue cone , side view.",
  "a red cube on top of a blue cone side view"])
def test_parser_reads_view_words(text):
  assert captions.parse(text) == Spec((("red", "cube"), ("blue", "cone")), "side view")


@pytest.mark.parametrize("text, mistake", [
  ("a red dog", "'dog'"), ("a crimson cube", "'crimson'"), ("a red cube under a blue cone", "'under'"),
  ("a cube", "'a cube'"), ("", "''"), ("a red cube a blue cone", "a colour and a shape"),
  ("a red cube on top of", "a colour and a shape"), ("a red, cube", "a colour and a shape"),
  ("a red cube on top of a blue cone on top of a pink torus", "a colour and a shape"),
  ("front view", "a colour and a shape"), ("a red mug on top of a blue cube", "a mug cannot be stacked")])
def test_errors_name_the_mistake_and_the_legal_words(text, mistake):
  with pytest.raises(CaptionError) as caught:
    captions.parse(text)
  message = str(caught.value)
  assert mistake in message and isinstance(caught.value, ValueError)
  assert all(word in message for word in (*solids.COLOURS, *solids.KINDS, "on top of"))


def test_azimuth_is_fixed_by_fronts_only():
  fixed = {kind for kind in solids.KINDS if captions.azimuth_is_fixed(Spec((("red", kind),)))}
  assert fixed == {"house", "mug", "chair", "snowman"}
  assert not captions.azimuth_is_fixed(captions.parse("a red cube on top of a blue pyramid"))


def test_held_out_pairs_leave_every_colour_and_kind_frequent():
  pairs = {(colour, kind) for colour in solids.COLOURS for kind in solids.KINDS}
  assert HELD_OUT < pairs and 0.08 <= len(HELD_OUT) / len(pairs) <= 0.13
  shown = pairs - HELD_OUT
  for kind in solids.KINDS:
    assert sum(pair[1] == kind for pair in shown) >= 6
  for colour in solids.COLOURS:
    assert sum(pair[0] == colour for pair in shown) >= 6


def test_samples_respect_the_held_out_split():
  rng = np.random.default_rng(0)
  trained = [captions.sample_spec(rng, 0.5, held_out=False) for _ in range(4000)]
  assert not any(captions.is_held_out(spec) for spec in trained)
  assert all(spec.parts[0] in HELD_OUT for spec in (captions.sample_spec(rng, 0.5, held_out=True) for _ in range(500)))
  stacked_share = np.mean([len(spec.parts) == 2 for spec in trained])
  assert abs(stacked_share - 0.5) < 0.04
  single = [spec.parts[0] for spec in trained if len(spec.parts) == 1]
  shares = [np.mean([kind == pair[1] for pair in single]) for kind in solids.KINDS]
  assert max(abs(np.array(shares) - 1 / 11)) < 0.03
  assert {part for spec in trained for part in spec.parts} == {
    (colour, kind) for colour in solids.COLOURS for kind in solids.KINDS} - HELD_OUT


def test_weights_set_the_frequency_of_a_kind():
  rng = np.random.default_rng(0)
  weights = {"chair": 3.0, "cube": 2.0}
  drawn = [captions.sample_spec(rng, 0.5, weights=weights) for _ in range(6000)]
  assert not any(captions.is_held_out(spec) for spec in drawn)
  single = [spec.parts[0][1] for spec in drawn if len(spec.parts) == 1]
  for kind in solids.KINDS:
    assert abs(np.mean([kind == other for other in single]) - weights.get(kind, 1.0) / 14) < 0.02, kind
  stacked = [kind for spec in drawn if len(spec.parts) == 2 for _, kind in spec.parts]
  for kind in solids.PLAIN:
    assert abs(np.mean([kind == other for other in stacked]) - weights.get(kind, 1.0) / 8) < 0.02, kind


def test_sampling_depends_on_the_generator_only():
  draw = lambda seed: [captions.sample_spec(np.random.default_rng([seed, i])) for i in range(20)]  # noqa: E731
  assert draw(3) == draw(3) != draw(4)
