"""Every mistake in the settings is one line that names the field, the value and what is legal."""
import math

import ml_collections
import pytest

from sds_jax.training import choices, config as config_lib
from sds_jax.training.validation import ConfigError, check_name, validate

NAN, INF = math.nan, math.inf

MISTAKES = [
  # (field, value, what the message must hold besides the field's name)
  ("prompt", "", "1 to 10,000 characters"),
  ("prompt", " \n ", "1 to 10,000 characters"),
  ("prompt", "x" * 10_001, "1 to 10,000 characters"),
  ("seed", -1, "-1"),
  ("seed", 2**31, "2147483648"),
  ("resume", "yes", "auto, must, never"),
  ("prior.dtype", "float16", "float32, bfloat16"),
  ("prior.random_weights", True, "config.prior.name='shapeworld': set config.prior.name to one of sd15, sd21-base"),
  ("distillation.estimator", "sdz", "one of sds"),
  ("distillation.weighting", "sigma", "sigma2"),
  ("distillation.guidance_convention", "imagen", "dreamfusion, diffusers"),
  ("distillation.csd.negative_weight", (), "()"),
  ("distillation.t_warp", "cubic", "linear, sqrt, dreamtime"),
  ("distillation.t_sampler", "random", "uniform, stratified, antithetic"),
  ("distillation.source", "runs/no-such", "runs/no-such"),
  ("distillation.vsd.rank", 0, "from 1 to 1024"),
  ("distillation.vsd.learning_rate", 0.0, "above 0"),
  ("distillation.bridge.begins", 1.5, "a fraction of the run"),
  ("distillation.ism.delta_s", 0.0, "a fraction of the schedule"),
  ("distillation.cds.clip", (-1.0,), "at least 0"),
  ("distillation.guidance_scale", (NAN,), "nan"),
  ("distillation.guidance_scale", ("10",), "'10'"),
  ("distillation.guidance_scale", (1.0, 2.0), "(1.0, 2.0)"),
  ("distillation.guidance_scale", ((0.0, 10.0), (0.0, 5.0)), "rising"),
  ("distillation.guidance_scale", ((0.5, 10.0), (0.2, 5.0)), "rising"),
  ("distillation.guidance_scale", ((0.0, 10.0), (1.5, 5.0)), "[0, 1]"),
  ("distillation.guidance_scale", ((0.0, 10.0, 1.0),), "points"),
  ("distillation.t_min", (0.99,), "t_max=(0.98,)"),
  ("distillation.t_max", (1.2,), "from 0 to 1"),
  ("distillation.t_max", ((0.0, 0.98), (1.0, 0.01)), "t_min=(0.02,)"),
  ("negative_prompt", "x" * 10_001, "at most 10,000 characters"),
  ("distillation.guidance_rescale", (1.5,), "from 0 to 1"),
  ("distillation.guidance_rescale", ((0.0, 0.7), (1.0, -0.1)), "from 0 to 1"),
  ("distillation.perp_neg", "perpneg", "none, stable_dreamfusion, threestudio"),
  ("distillation.perp_neg_scale", (-1.0,), "from 0 to 100"),
  ("distillation.clip_norm", (-0.5,), "at least 0"),
  ("distillation.clip_norm", ((0.0, 1.0), (1.0, 0.0)), "above 0"),
  ("distillation.clip_norm", ((0.0, 1.0), (0.0, 2.0)), "rising"),
  ("distillation.view_words", "all", "nearest, blended, none"),
  ("camera.elevation_deg", (40.0, 10.0), "smallest <= largest"),
  ("camera.elevation_deg", (0.0, 120.0), "90"),
  ("camera.elevation_deg", (0.0, 10.0, 20.0), "(smallest, largest)"),
  ("camera.distance", (2.4, INF), "100"),
  ("camera.fov_deg", (NAN, 50.0), "nan"),
  ("camera.fov_deg", ("42", "50"), "'42'"),
  ("camera.focal", (0.0, 1.0), "(0.0, 0.0): fov_deg counts"),
  ("camera.focal", (1.35, 0.7), "smallest <= largest"),
  ("camera.position_jitter", -0.1, "from 0 to 1"),
  ("shading.lambertian", 1.5, "from 0 to 1"),
  ("shading.ambient", NAN, "nan"),
  ("shading.ambient_spread", -0.1, "from 0 to 1"),
  ("shading.ambient_spread", 0.6, "ambient=0.5"),
  ("field.name", "nerf", "mlp, paper_mlp, hashgrid"),
  ("field.bound", 0.0, "from 0.05 to 1"),
  ("field.blob", "cube", "gaussian, linear, none"),
  ("field.blob_radius", 0.0, "above 0"),
  ("field.density", "relu", "softplus"),
  ("field.mlp.hidden", 0, "from 1 to 1024"),
  ("field.mlp.activation", "tanh", "relu, silu, softplus"),
  ("field.paper_mlp.variance", (-1e-3,), "from 0 to 1"),
  ("field.paper_mlp.variance", ((0.0, 5e-2), (0.3, INF)), "from 0 to 1"),
  ("field.hashgrid.open_levels", (33.0,), "from 0 to 32"),
  ("field.hashgrid.open_levels", ((0.0, 0.5), (1.0, 8.0)), "at 1 or above"),
  ("field.hashgrid.open_levels", ((0.0, 4.0), (1.0, 7.0)), "levels=8"),
  ("field.hashgrid.log2_table", 40, "from 8 to 24"),
  ("background.name", "sky", "plain, white, mlp, harmonics"),
  ("background.random_colour", 1.5, "from 0 to 1"),
  ("background.random_colour", 0.5, "name='plain' is not learnt"),
  ("background.mlp.hidden", 0, "from 1 to 1024"),
  ("background.mlp.depth", -1, "from 0 to 32"),
  ("background.mlp.num_octaves", 0, "from 1 to 16"),
  ("background.harmonics.degree", 5, "from 1 to 4"),
  ("background.harmonics.hidden", 0, "from 1 to 1024"),
  ("background.harmonics.depth", 33, "from 0 to 32"),
  ("render.height", -64, "-64"),
  ("render.width", 100_000, "from 8 to 1024"),
  ("render.num_samples", 49, "config.render.candidates=48"),
  ("render.candidates", 8, "config.render.num_samples=16"),
  ("render.block_points", -2, "chosen by the backend"),
  ("render.normals", "none", "analytic, difference"),
  ("loss.opacity", (-1.0,), "at least 0"),
  ("loss.sds", (INF,), "inf"),
  ("optimizer.name", "lion", "adam"),
  ("optimizer.learning_rate", 0.0, "above 0"),
  ("optimizer.learning_rate", INF, "inf"),
  ("optimizer.b1", 1.0, "0.9999"),
  ("optimizer.background_factor", -0.1, "from 0 to 100"),
  ("optimizer.warmup_steps", 100_000, "config.training.steps="),
  ("training.steps", 0, "from 1 to 16777215"),
  ("training.views", 0, "from 1 to 4096"),
  ("training.log_every", 0, "at least 1"),
  ("training.guidance_every", -1, "at least 0"),
  ("training.checkpoint_every", -5, "at least 1"),
  ("training.keep_checkpoints", 0, "at least 1"),
  ("occupancy.resolution", 2, "from 4 to 256"),
  ("occupancy.resolution", 33, "even"),
  ("occupancy.decay", 1.5, "from 0 to 1"),
  ("export.mesh_resolution", 8, "from 16 to 1024"),
  ("export.turntable_frames", 1, "from 2 to 10000"),
  ("export.turntable_elevation_deg", 90.0, "from -89 to 89"),
]


def changed(field, value):
  """The default settings with one of them replaced, whatever its type."""
  config = config_lib.default()
  *groups, last = field.split(".")
  group = config
  for name in groups:
    group = group[name]
  with group.ignore_type():
    group[last] = value
  return config


def mistake(config):
  with pytest.raises(ConfigError) as caught:
    validate(config)
  message = str(caught.value)
  assert "\n" not in message and len(message) < 400 + 10_001
  return message


def test_random_weights_go_with_published_names_only():
  config = changed("prior.random_weights", True)
  config.prior.name = "sd15"
  assert validate(config).prior.random_weights
  config.prior.path = "folder"
  assert "config.prior.path='folder'" in mistake(config)


def test_defaults_are_legal_and_come_back_frozen():
  frozen = validate(config_lib.default())
  assert isinstance(frozen, ml_collections.FrozenConfigDict) and isinstance(hash(frozen), int)
  given, found = config_lib.default().to_dict(), frozen.to_dict()
  chosen = {name for name, value in found["distillation"].items() if value != given["distillation"][name]}
  assert chosen == set(choices.OPEN) and all(found["distillation"][name] == given["distillation"]["sds"][name]
                                             for name in chosen)
  assert dict(found, distillation=None) == dict(given, distillation=None)
  with pytest.raises(AttributeError):
    frozen.seed = 1


def test_the_frozen_copy_stands_apart():
  config = config_lib.default()
  frozen = validate(config)
  config.render.height = 8
  assert frozen.render.height != 8


@pytest.mark.parametrize("field, value, part", MISTAKES)
def test_mistakes(field, value, part):
  message = mistake(changed(field, value))
  assert f"config.{field}={value!r}" in message and part in message


@pytest.mark.parametrize("field, value, needed", [
  ("seed", "0", "int"), ("seed", 1.5, "int"), ("seed", True, "int"), ("training.steps", None, "int"),
  ("render.height", 64.0, "int"), ("prompt", 3, "str"), ("optimizer.learning_rate", "1e-2", "float"),
  ("distillation.guidance_scale", 10.0, "tuple"), ("camera.stratified", 1, "bool"),
  ("export.mesh", "no", "bool"), ("prior.random_weights", 1, "bool")])
def test_wrong_types(field, value, needed):
  message = mistake(changed(field, value))
  assert f"config.{field}={value!r}" in message and type(value).__name__ in message and needed in message


def test_a_group_replaced_by_a_value():
  assert "config.render=64 is not legal: it must be a group of settings" in mistake(changed("render", 64))


def test_unknown_settings_name_the_nearest():
  assert "did you mean config.render.height?" in mistake(changed("render.heigth", 64))
  assert "did you mean config.training?" in mistake(changed("trainning", 64))
  message = mistake(changed("render.zzz", 1))
  assert "config.render.zzz is not a setting; known here:" in message and "height" in message
  with pytest.raises(ConfigError, match="config.seed.x is not a setting; config.seed has no settings inside"):
    check_name("seed.x", config_lib.default())


def test_missing_settings():
  config = config_lib.default()
  del config.render["height"]
  assert "config.render.height is missing" in mistake(config)


@pytest.mark.parametrize("changes, parts", [
  ({"field.hashgrid.finest": 4}, ("finest=4", "coarsest=8")),
  ({"shading.lambertian": 0.6, "shading.textureless": 0.5}, ("lambertian=0.6", "textureless=0.5", "more than 1")),
  ({"camera.distance": (1.0, 3.0), "field.bound": 1.0}, ("config.camera.distance=(1.0, 3.0)", "bound=1.0")),
  ({"distillation.t_min": ((0.0, 0.1), (1.0, 0.6)), "distillation.t_max": ((0.2, 0.9), (0.7, 0.4))},
   ("t_min=", "t_max=", "below")),
  ({"distillation.t_min": (0.7,), "distillation.t_max": (0.3,)}, ("t_min=(0.7,)", "t_max=(0.3,)", "below")),
  ({"distillation.perp_neg": "threestudio", "distillation.view_words": "none"},
   ("perp_neg='threestudio'", "view_words='none'", "nearest or blended")),
  ({"distillation.estimator": "csd", "distillation.guidance_scale": (7.5,)}, ("guidance_scale=(7.5,)", "no part")),
  ({"distillation.estimator": "bridge", "distillation.perp_neg": "threestudio"}, ("perp_neg=", "'bridge'")),
  ({"distillation.estimator": "hifa", "distillation.latent_until": 0.2}, ("latent_until=0.2", "'hifa'")),
  ({"training.particles": 2, "distillation.antithetic_noise": True}, ("antithetic_noise=True", "particles=2")),
  ({"training.particles": 2, "distillation.t_sampler": "antithetic"}, ("t_sampler='antithetic'", "particles=2")),
  ({"training.steps": 10, "optimizer.warmup_steps": 10}, ("warmup_steps=10", "steps=10"))])
def test_fields_that_contradict_each_other(changes, parts):
  config = config_lib.default()
  config.update_from_flattened_dict(changes)
  message = mistake(config)
  assert all(part in message for part in parts)


@pytest.mark.parametrize("changes", [
  {"optimizer.learning_rate": 1}, {"distillation.guidance_scale": ((0.0, 20.0), (0.5, 10.0), (1.0, 5.0))},
  {"distillation.t_max": ((0.0, 0.98), (1.0, 0.5))},
  {"distillation.t_min": (0.5,), "distillation.t_max": (0.5,)},
  {"distillation.t_min": ((0.0, 0.5), (1.0, 0.02)), "distillation.t_max": ((0.0, 0.98), (1.0, 0.5))},
  {"render.candidates": 16, "render.num_samples": 16},
  {"field.hashgrid.finest": 8}, {"training.steps": 1, "optimizer.warmup_steps": 0}, {"occupancy.every": 0},
  {"prompt": "übergroßer Würfel 🧊\nauf zwei Zeilen"}, {"camera.elevation_deg": (-90.0, 90.0)},
  {"shading.lambertian": 0.0, "shading.textureless": 0.0}, {"training.render_every": 0},
  {"camera.focal": (0.7, 1.35)}, {"shading.ambient_spread": 0.5},
  {"field.paper_mlp.variance": ((0.0, 5e-2), (0.3, 0.0))}, {"field.hashgrid.open_levels": ((0.2, 4.0), (0.6, 8.0))},
  {"background.name": "mlp", "background.random_colour": 0.5}])
def test_unusual_but_legal(changes):
  config = config_lib.default()
  for field, value in changes.items():
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
  assert isinstance(validate(config), ml_collections.FrozenConfigDict)


def test_a_group_that_fills_what_is_left_open_is_named_itself():
  assert "config.distillation.sds.weighting='foo'" in mistake(changed("distillation.sds.weighting", "foo"))
