"""What an estimator takes where the settings leave it open, against the published numbers."""
import pytest

from sds_jax.training import choices, distil, image3d_config, image3d_validation
from sds_jax.training.validation import validate

CONSTANT = ((0.02,), (0.98,), "linear")
FALLING = lambda start, end: ((0.0, start), (1.0, end))  # noqa: E731

# weighting, guidance convention, guidance scale, and t's range (t_min, t_max, t_warp). Knots are (fraction of the run,
# value). Sources: the papers that `sds_jax/diffusion/estimators.py` and its siblings name, their authors' code, and
# threestudio's for VSD, SDI and HiFA.
PUBLISHED = {
    # coarse stage of 10,000 steps, t_max lowered at 5,000; its guidance has no scale
    "csd": ("uniform", "diffusers", (1.0,), (0.02,), ((0.0, 0.98), (0.5, 0.98), (0.501, 0.5)), "linear"),
    # s = 7.5 (arXiv:2310.17590)
    "nfsd": ("sigma2", "diffusers", (7.5,), *CONSTANT),
    # SDS at 100, then the bridge with a weight of 1 from `bridge.begins` on
    "bridge": ("sigma2", "diffusers", ((0.0, 100.0), (0.8, 100.0), (0.801, 1.0)), (0.02,),
               ((0.0, 0.98), (0.2, 0.98), (0.201, 0.5)), "linear"),
    # s = 100, t from 0.01 to 0.97
    "sjc": ("uniform", "diffusers", (100.0,), (0.01,), (0.97,), "linear"),
    # of Stable Diffusion 3
    "rfds": ("uniform", "diffusers", (100.0,), (0.02,), (0.7,), "linear"),
    # 25,000 steps, t up to 0.5 after 5,000
    "vsd": ("sigma2", "diffusers", (7.5,), (0.02,), ((0.0, 0.98), (0.2, 0.98), (0.201, 0.5)), "linear"),
    # of images (arXiv:2304.07090)
    "dds": ("uniform", "diffusers", (7.5,), (0.05,), (0.95,), "linear"),
    # of NeRFs: scale 100, ratios 0.02 to 0.98
    "pds": ("uniform", "diffusers", (100.0,), *CONSTANT),
    # both ends come down
    "asd": ("sigma2", "diffusers", (7.5,), FALLING(0.5, 0.02), FALLING(0.98, 0.5), "linear"),
    # w = sigma / alpha; warm-up from 0.98 for 1,500 of 5,000 steps
    "ism": ("sigma_over_alpha", "diffusers", (7.5,), (0.02,), ((0.0, 0.98), (0.3, 0.5)), "linear"),
    # omega 7.5, t comes down without randomness
    "sdi": ("sigma_over_alpha", "dreamfusion", (7.5,), FALLING(0.98, 0.25), FALLING(0.98, 0.25), "linear"),
    # omega 100 to 50, t 700 to 100 of 1,000
    "cds": ("uniform", "dreamfusion", FALLING(100.0, 50.0), FALLING(0.7, 0.1), FALLING(0.7, 0.1), "sqrt"),
    # omega 100, t by the square root of progress
    "hifa": ("sigma2", "dreamfusion", (100.0,), FALLING(0.98, 0.3), FALLING(0.98, 0.3), "sqrt"),
}
SMALL = {"pds": {"guidance_scale": (20.0,)}, "ism": {"t_min": (0.25,)},
         "cds": {"t_min": FALLING(0.8, 0.3), "t_max": FALLING(0.8, 0.3)}}
"""What else than gentle guidance, in one convention, a prior like the one that ships needs."""


@pytest.fixture(scope="module")
def resolved(tiny_config):
  """(changes) -> `distillation` with nothing left open."""
  return lambda changes: validate(tiny_config(changes)).distillation


def open_settings(d):
  return tuple(d[name] for name in ("weighting", "guidance_convention", "guidance_scale", "t_min", "t_max", "t_warp"))


def test_every_estimator_has_its_published_numbers():
  assert set(PUBLISHED) == set(distil.NAMES) - set(choices.LIKE_SDS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_where_the_settings_leave_it_open_the_estimator_chooses(resolved, name):
  """Published numbers for published priors; for a small one the same but for its guidance and SMALL."""
  large, small = (resolved({"distillation.estimator": name, **more})
                  for more in ({"prior.path": "", "prior.name": "sd15"}, {}))
  assert open_settings(large) == PUBLISHED[name]
  gentle = dict(guidance_convention="diffusers", guidance_scale=(3.0,)) | SMALL.get(name, {}) if name != "csd" else {}
  assert open_settings(small) == open_settings({**large.to_dict(), **gentle})


def test_explicit_settings_win(resolved):
  assert resolved({"distillation.estimator": "vsd", "distillation.guidance_scale": (4.0,)}).guidance_scale == (4.0,)
  of_sds = resolved({"distillation.sds.guidance_scale": (5.0,), "distillation.estimator": "score"})
  assert of_sds.guidance_scale == (5.0,)


@pytest.mark.parametrize("estimator", sorted(set(image3d_validation.WITHOUT_WORDS) - {"csd"}))
@pytest.mark.parametrize("words, scale", [("zero123", (3.0,)), ("magic123", (5.0,)), ("shapeworld-views", (3.0,))])
def test_a_picture_wants_less_guidance_than_words(estimator, words, scale):
  config = image3d_config.from_words(words)
  config.distillation.estimator, config.prompt = estimator, "a red cube" if words == "magic123" else ""
  d = validate(config).distillation
  assert d.guidance_scale == scale and d.guidance_convention == "diffusers"
  config.distillation.guidance_scale = (7.0,)
  assert validate(config).distillation.guidance_scale == (7.0,)  # unless it is given
