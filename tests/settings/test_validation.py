"""Every mistake in the settings is one line that names the field, the value and what is legal."""
import dataclasses
import math

import pytest

from sds_jax import schema, settings
from sds_jax.settings import validate

NAN, INF = math.nan, math.inf

MISTAKES = [
  # (field, value, what the message must hold besides the field's name)
  ("prompt", "", "1 to 10,000 characters"),
  ("prompt", " \n ", "1 to 10,000 characters"),
  ("prompt", "x" * 10_001, "1 to 10,000 characters"),
  ("seed", -1, "-1"),
  ("seed", 2**31, "2147483648"),
  ("resume", "yes", "auto, must, never"),
  ("prior.dtype", "float8", "float32, bfloat16, float16"),
  ("prior.variant", "fp16.ema", "letters, digits"),
  ("prior.image_size", -64, "from 0 to 8192"),
  ("prior.crop", (0, -8), "two whole numbers from 0 to 8192"),
  ("prior.target_size", (512, 0), "config.prior.target_size=(512, 0) sets one side only: set both, or (0, 0)"),
  ("prior.random_weights", True, "config.prior.name='shapeworld': set config.prior.name to one of sd15, sd21-base"),
  ("distillation.estimator", "sdz", "one of sds"),
  ("distillation.weighting", "sigma", "sigma2"),
  ("distillation.guidance_convention", "imagen", "dreamfusion, diffusers"),
  ("distillation.csd.negative_weight", (), "a constant v or points"),
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
  ("distillation.t_min", 0.99, "t_max=0.98"),
  ("distillation.t_max", (1.2,), "from 0 to 1"),
  ("distillation.t_max", ((0.0, 0.98), (1.0, 0.01)), "t_min=0.02"),
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
  ("camera.distance", ("near",), "smallest <= largest"),
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
  ("generator.name", "mesh", "one of field, or package.module:function"),
  ("generator.name", ":make", "one of field, or package.module:function"),
  ("loss.sds", "much", "a constant v or points"),
  ("loss.sds", True, "a constant v or points"),
  ("loss.sds", None, "a constant v or points"),
  ("loss.sds", 10**400, "a constant v or points"),
  ("distillation.guidance_scale", "automatic", "auto, or a constant v or points"),
  ("distillation.t_warp", 1, "auto, or one of linear, sqrt, dreamtime"),
  ("training.views", 10**400, "from 1 to 4096"),
  ("parallel.mode", "vmap", "one of jit, pmap"),
  ("divergence.learning_rate_factor", 0.0, "a number above 0, up to 1"),
  ("optimizer.ema_decay", 1.0, "from 0 to below 1"),
  ("distillation.latent_until", 1.0, "from 0 to below 1"),
  ("render.milestones", ((0.5, 7),), "whole sizes from 8 to 1024"),
  ("render.milestones", ((0.5, 32), (0.2, 64)), "rising"),
  ("render.milestones", (0.5,), "((p, size), ...)"),
  ("training.checkpoint_every", -5, "at least 1"),
  ("training.keep_checkpoints", 0, "at least 1"),
  ("occupancy.resolution", 2, "from 4 to 256"),
  ("occupancy.resolution", 33, "even"),
  ("occupancy.decay", 1.5, "from 0 to 1"),
  ("export.mesh_resolution", 8, "from 16 to 1024"),
  ("export.turntable_frames", 1, "from 2 to 10000"),
  ("export.turntable_elevation_deg", 90.0, "from -89 to 89"),
]




def test_random_weights_go_with_published_names_only(changed, mistake):
  config = changed({"prior.random_weights": True, "prior.name": "sd15"})
  assert validate(config).prior.random_weights
  config.prior.path = "folder"
  assert "config.prior.path='folder'" in mistake(config)


@pytest.mark.parametrize("task", settings.TREES)
def test_defaults_are_legal_and_come_back_frozen(task, flatten):
  checked = validate(settings.defaults(task))
  assert isinstance(checked, settings.TREES[task]) and isinstance(hash(checked), int)
  given, after = flatten(settings.defaults(task)), flatten(checked)
  chosen = {name for name in given if given[name] != after[name]}
  if hasattr(checked, "camera"):  # by the prior
    chosen.remove("camera.group")
    assert (given["camera.group"], after["camera.group"]) == (schema.AUTO, 1)
  assert chosen == {f"distillation.{field.name}" for field in dataclasses.fields(checked.distillation.sds)}
  assert all(given[name] == schema.AUTO and after[name] == given[name.replace(".", ".sds.")] for name in chosen)
  with pytest.raises(dataclasses.FrozenInstanceError):
    checked.seed = 1


def test_equal_settings_are_equal():
  assert validate(settings.defaults()) == validate(settings.defaults())


def test_the_frozen_copy_stands_apart():
  config = settings.defaults()
  checked = validate(config)
  config.render.height = 8
  assert checked.render.height != 8


@pytest.mark.parametrize("field, value, part", MISTAKES)
def test_mistakes(changed, mistake, field, value, part):
  message = mistake(changed({field: value}))
  assert f"config.{field}={value!r}" in message and part in message


@pytest.mark.parametrize("field, value, needed", [
  ("seed", "0", "int"), ("seed", 1.5, "int"), ("seed", True, "int"), ("training.steps", None, "int"),
  ("render.height", 64.0, "int"), ("prompt", 3, "str"), ("optimizer.learning_rate", "1e-2", "float"),
  ("camera.distance", 2.5, "tuple"), ("camera.stratified", 1, "bool"),
  ("export.mesh", "no", "bool"), ("prior.random_weights", 1, "bool")])
def test_wrong_types(changed, mistake, field, value, needed):
  message = mistake(changed({field: value}))
  assert f"config.{field}={value!r}" in message and type(value).__name__ in message and needed in message


def test_a_group_replaced_by_a_value(changed, mistake):
  assert "config.render=64 is not legal: it must be a group of settings" in mistake(changed({"render": 64}))


def test_unknown_settings_name_the_nearest(changed, mistake):
  assert "config.render.heigth is not a setting; did you mean config.render.height?" in mistake(
    changed({"render.heigth": 64}))
  assert "did you mean config.training?" in mistake(changed({"trainning": 64}))
  message = mistake(changed({"render.zzz": 1}))
  assert "config.render.zzz is not a setting; known here:" in message and "height" in message
  with pytest.raises(settings.ConfigError, match="config.seed.x is not a setting; config.seed has no settings inside"):
    settings.check_name("seed.x", settings.TREES["text3d"]())


def test_missing_settings(mistake):
  config = settings.defaults()
  del config.render["height"]
  assert "config.render.height is missing" in mistake(config)


def test_an_unknown_task(changed, mistake):
  message = mistake(changed({"job": "text4d"}))
  assert "config.job='text4d' is not legal: it must be one of text3d, image3d, image2d" in message


@pytest.mark.parametrize("changes, parts", [
  ({"field.hashgrid.finest": 4}, ("finest=4", "coarsest=8")),
  ({"shading.lambertian": 0.6, "shading.textureless": 0.5}, ("lambertian=0.6", "textureless=0.5", "more than 1")),
  ({"camera.distance": (1.0, 3.0), "field.bound": 1.0}, ("config.camera.distance=(1.0, 3.0)", "bound=1.0")),
  ({"distillation.t_min": ((0.0, 0.1), (1.0, 0.6)), "distillation.t_max": ((0.2, 0.9), (0.7, 0.4))},
   ("t_min=", "t_max=", "below")),
  ({"distillation.t_min": (0.7,), "distillation.t_max": 0.3}, ("t_min=0.7", "t_max=0.3", "below")),
  ({"distillation.perp_neg": "threestudio", "distillation.view_words": "none"},
   ("perp_neg='threestudio'", "view_words='none'", "nearest or blended")),
  ({"distillation.estimator": "csd", "distillation.guidance_scale": 7.5}, ("guidance_scale=7.5", "no effect")),
  ({"distillation.estimator": "bridge", "distillation.perp_neg": "threestudio"}, ("perp_neg=", "'bridge'")),
  ({"distillation.estimator": "hifa", "distillation.latent_until": 0.2}, ("latent_until=0.2", "'hifa'")),
  ({"distillation.source": "runs/no-such"}, ("source='runs/no-such'", "dds", "pds", "estimator='sds'")),
  ({"distillation.estimator": "pds", "distillation.source": "runs/no-such"},
   ("source='runs/no-such'", "no config.json", "source_prompt")),
  ({"training.particles": 2, "distillation.antithetic_noise": True}, ("antithetic_noise=True", "particles=2")),
  ({"training.particles": 2, "distillation.t_sampler": "antithetic"}, ("t_sampler='antithetic'", "particles=2")),
  ({"training.particles": 3}, ("training.views=2 is no multiple of config.training.particles=3",)),
  ({"training.steps": 10, "optimizer.warmup_steps": 10}, ("warmup_steps=10", "steps=10")),
  ({"parallel.shard_prior": True, "parallel.mode": "pmap"}, ("shard_prior=True", "mode='jit'")),
  ({"parallel.shard_prior": True, "training.guidance_every": 5}, ("guidance_every=5", "shard_prior=True")),
  ({"render.height": 32}, ("height=32", "width=64", "square")),
  *(({"prompts_file": "list.txt", name: value},
     (f"config.{name}={value!r} is for one object", "prompts_file='list.txt'"))
    for name, value in (("training.guidance_every", 2), ("parallel.mode", "pmap"), ("parallel.shard_prior", True),
                        ("training.particles", 2)))])
def test_fields_that_contradict_each_other(changed, mistake, changes, parts):
  message = mistake(changed(changes))
  assert all(part in message for part in parts), message


@pytest.mark.parametrize("changes, parts", [
  ({"distillation.perp_neg": "threestudio"}, ("config.distillation.perp_neg='threestudio' has no effect on images",)),
  ({"optimizer.background_factor": 0.5}, ("leave it at 1.0",)),
  ({"prompt": "a red cube|"}, ("config.prompt='a red cube|'", "with | between them")),
  ({"prompt": "a red cube|a blue cube"}, ("has 2 parts", "the generator shared")),
  ({"training.views": 3, "generator.particles": 2}, ("no multiple", "set it to 2")),
  ({"generator.name": "shared", "training.views": 6, "distillation.antithetic_noise": True},
   ("antithetic_noise=True", "generator.shared.frames=3")),
  ({"generator.particles": 2, "distillation.t_sampler": "antithetic"}, ("antithetic", "generator.particles=2")),
  ({"generator.name": "oil"}, ("config.generator.name='oil'", "one of pixels, fourier")),
  ({"generator.viewpoint": (0.0, 91.0)}, ("generator.viewpoint=(0.0, 91.0)", "from -90 to 90")),
  ({"generator.size": 15}, ("an even number from 8 to 1024",)),
  ({"generator.shared.own": 0.0}, ("above 0, up to 100",)),
  ({"generator.texture.shape": "torus"}, ("one of sphere, cube",)),
  ({"prior.name": "zero123"}, ("config.prior.name='zero123' is conditioned on an image",))])
def test_mistakes_of_images(changed, mistake, changes, parts):
  message = mistake(changed(changes, "image2d"))
  assert all(part in message for part in parts), message


@pytest.mark.parametrize("changes, parts", [
  ({"image": " "}, ("config.image=' '", "the path of a file")),
  ({"picture.elevation_deg": "high"}, ("elevation_deg='high'", "auto, or a number of degrees from -89 to 89")),
  ({"picture.elevation_deg": 90}, ("elevation_deg=90", "from -89 to 89")),
  ({"picture.elevation_deg": "nan"}, ("elevation_deg='nan'",)),
  ({"picture.framing": "left"}, ("one of auto, centre, keep",)),
  ({"picture.background": "black"}, ("one of auto, alpha, plain, rembg",)),
  ({"picture.depth_is": "inverse"}, ("one of depth, disparity",)),
  ({"picture.azimuth_deg": 361.0}, ("from -360 to 360",)),
  ({"picture.depth": "d.png"}, ("picture.depth='d.png' has no effect because config.loss.depth is 0.0", "10.0")),
  ({"loss.normals": 1.0}, ("config.loss.normals=1.0 needs a map of the photo", "config.picture.normals")),
  ({"loss.words": 1.0}, ("config.loss.words=1.0 is the weight", "config.prompt is empty")),
  ({"prompt": "a cube"}, ("config.prompt='a cube' is the condition", "config.loss.words is 0.0")),
  ({"prompt": "a cube", "loss.words": 1.0, "words.prior": "zero123"}, ("words.prior='zero123'", "sd15", "owner/name")),
  ({"camera.distance": (2.0, 3.0)}, ("camera.distance=(2.0, 3.0) is a range", "such as (2.0, 2.0)")),
  ({"camera.focal": (1.0, 1.0)}, ("camera.focal=(1.0, 1.0) must be (0.0, 0.0)",)),
  ({"camera.up_std": 0.1}, ("camera.up_std=0.1 must be 0.0",)),
  ({"shading.textureless": 0.1}, ("config.shading.textureless=0.1 must be 0.0",)),
  ({"negative_prompt": "ugly"}, ("negative_prompt='ugly' has no effect on an object from a photo: leave it at ''",)),
  ({"training.particles": 2}, ("training.particles=2 has no effect",)),
  *(({"distillation.estimator": name}, (f"estimator={name!r} compares two descriptions", "sds, score"))
    for name in ("bridge", "dds", "pds")),
  ({"prior.name": "sd15"}, ("config.prior.name='sd15' is conditioned on text",))])
def test_mistakes_of_photos(changed, mistake, changes, parts):
  message = mistake(changed(changes, "image3d"))
  assert all(part in message for part in parts), message


@pytest.mark.parametrize("changes", [
  {"optimizer.learning_rate": 1}, {"distillation.guidance_scale": ((0.0, 20.0), (0.5, 10.0), (1.0, 5.0))},
  {"distillation.t_max": ((0.0, 0.98), (1.0, 0.5))},
  {"distillation.t_min": (0.5,), "distillation.t_max": 0.5},
  {"distillation.t_min": ((0.0, 0.5), (1.0, 0.02)), "distillation.t_max": ((0.0, 0.98), (1.0, 0.5))},
  {"render.candidates": 16, "render.num_samples": 16},
  {"field.hashgrid.finest": 8}, {"training.steps": 1, "optimizer.warmup_steps": 0}, {"occupancy.every": 0},
  {"prompt": "übergroßer Würfel 🧊\nauf zwei Zeilen"}, {"camera.elevation_deg": (-90.0, 90.0)},
  {"shading.lambertian": 0.0, "shading.textureless": 0.0}, {"training.render_every": 0},
  {"camera.focal": (0.7, 1.35)}, {"shading.ambient_spread": 0.5},
  {"field.paper_mlp.variance": ((0.0, 5e-2), (0.3, 0.0))}, {"field.hashgrid.open_levels": ((0.2, 4.0), (0.6, 8.0))},
  {"background.name": "mlp", "background.random_colour": 0.5}, {"generator.name": "my.module:make"}])
def test_unusual_but_legal(changed, changes):
  assert isinstance(validate(changed(changes)), settings.TREES["text3d"])


@pytest.mark.parametrize("old, new", [
  ((2.0,), 2.0), ([2.0], 2.0), (2, 2.0), (((0.0, 1.0), (1.0, 2.0)), ((0.0, 1.0), (1.0, 2.0))),
  ([[0.0, 1.0], [1.0, 2.0]], ((0.0, 1.0), (1.0, 2.0)))])
def test_scheduled_numbers_have_one_form(changed, old, new):
  """The constant in a tuple is how config files wrote it before; lists are how JSON writes tuples."""
  weight = validate(changed({"loss.sds": old})).loss.sds
  assert weight == new and type(weight) is type(new)


def test_an_empty_tuple_leaves_a_value_open(changed):
  assert validate(changed({"distillation.guidance_scale": ()})).distillation.guidance_scale == 3.0


@pytest.mark.parametrize("given, degrees", [
  ("auto", "auto"), (" auto ", "auto"), ("5", 5.0), (" -7.5", -7.5), (3, 3.0)])
def test_the_elevation_of_a_photo(changed, given, degrees):
  assert validate(changed({"picture.elevation_deg": given}, "image3d")).picture.elevation_deg == degrees


def test_a_group_that_fills_what_is_left_open_is_named_itself(changed, mistake):
  assert "config.distillation.sds.weighting='foo'" in mistake(changed({"distillation.sds.weighting": "foo"}))
