"""The settings that recipes and priors stand for: legal, those of their sources, and steps that can be built."""
import importlib.util
from pathlib import Path

import jax
import pytest

from sds_jax.priors import prior as priors, published
from sds_jax.training import conditions, config as config_lib, recipes, step as step_lib, validation

PATH = Path(__file__).resolve().parents[2] / "configs" / "text.py"


@pytest.fixture(scope="module")
def get_config():
  spec = importlib.util.spec_from_file_location("text_config", PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config


WORDS = [name for name, components in published.PRIORS.items() if "image_encoder" not in components]


@pytest.mark.parametrize("name", [*WORDS, "owner/name", "DeepFloyd/IF-I-M-v1.0"])
def test_published_priors(get_config, name):
  config = validation.validate(get_config(name))
  assert (config.prior.name, config.prior.dtype, config.training.steps) == (name, "bfloat16", 10_000)
  pixels = "if" in name.lower()
  assert config.distillation.guidance_scale == ((20.0,) if pixels else (100.0,))
  assert config.distillation.guidance_convention == "dreamfusion"


@pytest.mark.parametrize("words", ["zero123", "dreamfusion,stable-zero123", "bennyguo/zero123-diffusers",
                                   "shapeworld-views"])
def test_what_is_told_a_picture_is_refused_before_it_is_fetched(get_config, words):
  with pytest.raises(validation.ConfigError, match="is told a picture: use configs/image.py"):
    validation.validate(get_config(words))


@pytest.mark.parametrize("argument", [(), ("shapeworld",), ("",)])
def test_the_shipped_prior(get_config, argument):
  config = validation.validate(get_config(*argument))
  assert (config.prior.name, config.prior.dtype, config.field.name) == ("shapeworld", "float32", "mlp")


PUBLISHED = {
  # Once more by hand, from the publications.
  "dreamfusion": {
    "prior.name": "if", "training.steps": 15_000, "training.views": 4, "render.height": 64,
    "distillation.guidance_convention": "dreamfusion", "distillation.guidance_scale": (100.0,),
    "distillation.t_min": (0.02,), "distillation.t_max": (0.98,), "distillation.weighting": "sigma2",
    "camera.elevation_deg": (-10.0, 90.0), "camera.distance": (1.0, 1.5), "camera.focal": (0.7, 1.35),
    "camera.position_jitter": 0.1, "camera.target_std": 0.2, "camera.up_std": 0.02, "shading.distance": (0.8, 1.5),
    "shading.albedo_until": 1000 / 15_000, "shading.lambertian": 0.375, "shading.textureless": 0.375,
    "shading.ambient": 0.1, "field.name": "paper_mlp", "field.paper_mlp.hidden": 128, "field.paper_mlp.blocks": 5,
    "field.paper_mlp.num_octaves": 8, "field.paper_mlp.variance": ((0.0, 0.05), (5000 / 15_000, 0.002)),
    "field.density": "exp", "field.blob": "gaussian", "field.blob_scale": 5.0, "field.blob_radius": 0.2,
    "background.name": "mlp", "loss.orientation": ((0.0, 1e-4), (5000 / 15_000, 1e-2)), "loss.opacity": (1e-3,),
    "optimizer.learning_rate": 1e-4, "optimizer.warmup_steps": 3000, "optimizer.final_fraction": 0.01},
  "dreamfusionacc": {
    "prior.name": "sd21-base", "training.steps": 10_000, "training.views": 1, "render.height": 256,
    "distillation.guidance_convention": "diffusers", "distillation.guidance_scale": (100.0,),
    "camera.elevation_deg": (-30.0, 90.0), "camera.distance": (1.2, 2.0), "camera.focal": (0.7, 1.35),
    "camera.position_jitter": 0.0, "shading.albedo_until": 0.2, "shading.lambertian": 0.75,
    "shading.textureless": 0.125, "shading.ambient": 0.1, "shading.ambient_spread": 0.9, "field.name": "hashgrid",
    "field.hashgrid.levels": 16, "field.hashgrid.coarsest": 16, "field.hashgrid.finest": 4096,
    "field.hashgrid.log2_table": 19, "field.hashgrid.hidden": 32, "field.hashgrid.open_levels": (0.0,),
    "field.density": "softplus", "field.density_bias": -1.0, "field.blob": "linear", "field.blob_scale": 10.0,
    "field.blob_radius": 0.5, "background.name": "harmonics", "background.harmonics.degree": 4,
    "background.harmonics.hidden": 16, "background.harmonics.depth": 1, "background.random_colour": 0.0,
    "loss.orientation": (1e-2,), "loss.opacity": (0.0,), "loss.entropy": (0.0,), "optimizer.learning_rate": 1e-2,
    "optimizer.b1": 0.9, "optimizer.b2": 0.99, "optimizer.eps": 1e-15, "optimizer.background_factor": 0.1,
    "occupancy.resolution": 128, "occupancy.every": 10, "occupancy.decay": 0.6},
  "threestudio_sd": {
    "prior.name": "sd21-base", "training.steps": 10_000, "training.views": 1, "render.height": 64,
    "distillation.guidance_convention": "dreamfusion", "distillation.guidance_scale": (100.0,),
    "camera.elevation_deg": (-10.0, 45.0), "camera.distance": (1.5, 2.0), "camera.fov_deg": (40.0, 70.0),
    "camera.focal": (0.0, 0.0), "camera.position_jitter": 0.1, "camera.target_std": 0.2, "camera.up_std": 0.02,
    "shading.albedo_until": 0.2, "shading.lambertian": 0.375, "shading.textureless": 0.375, "shading.ambient": 0.1,
    "field.name": "hashgrid", "field.hashgrid.levels": 16, "field.hashgrid.features": 2,
    "field.hashgrid.coarsest": 16, "field.hashgrid.finest": 4096, "field.hashgrid.log2_table": 19,
    "field.hashgrid.hidden": 64, "field.hashgrid.depth": 1,
    "field.hashgrid.open_levels": ((2000 / 10_000, 8.0), (6000 / 10_000, 16.0)),
    "field.density": "softplus", "field.blob": "linear", "field.blob_scale": 10.0, "field.blob_radius": 0.5,
    "background.name": "harmonics", "background.harmonics.degree": 3, "background.harmonics.hidden": 16,
    "background.harmonics.depth": 2, "background.random_colour": 0.5,
    "loss.orientation": ((0.0, 10.0), (5000 / 10_000, 1000.0)), "loss.opacity": (1.0,), "loss.entropy": (0.0,),
    "optimizer.learning_rate": 1e-2, "optimizer.b1": 0.9, "optimizer.b2": 0.99, "optimizer.eps": 1e-15,
    "optimizer.warmup_steps": 0, "optimizer.final_fraction": 1.0, "optimizer.background_factor": 0.1,
    "occupancy.resolution": 32},
}
PUBLISHED["threestudio_if"] = {**PUBLISHED["threestudio_sd"], "prior.name": "if-xl",
                               "distillation.guidance_scale": (20.0,), "camera.elevation_deg": (-10.0, 90.0)}
CHANGED_FOR_THE_SMALL_PRIOR = {
  "distillation.sds.guidance_scale", "distillation.t_sampler", "field.bound", "field.hashgrid.levels",
  "field.hashgrid.coarsest", "field.hashgrid.finest", "field.hashgrid.log2_table", "field.hashgrid.open_levels",
  "field.paper_mlp.hidden", "field.paper_mlp.blocks", "optimizer.learning_rate", "optimizer.warmup_steps",
  "optimizer.background_factor"}
"""And the groups below."""
GROUPS = {"prompt", "prior", "camera", "background", "render", "occupancy", "export", "training"}


def flat(config, prefix=""):
  """Nested settings as {dotted name: value}."""
  found = {}
  for name, value in config.to_dict().items() if hasattr(config, "to_dict") else config.items():
    found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_constants(get_config, name):
  found = flat(validation.validate(get_config(name)))
  assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]
  assert set(PUBLISHED) == set(recipes.RECIPES)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("prior", ["shapeworld", *WORDS, "owner/name"])
def test_every_recipe_takes_every_prior(get_config, name, prior):
  for words in (f"{name},{prior}", f" {prior} , {name}"):
    assert validation.validate(get_config(words)).prior.name == prior


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_small_prior_changes(get_config, name):
  """Only what the docstring of the recipes tells; and it gets cameras, background and images that it knows."""
  published, small, default = (flat(c) for c in (
    get_config(name), get_config(f"{name},shapeworld"), config_lib.default()))
  changed = {key for key in small if small[key] != published[key]}
  assert {key for key in changed if key.split(".")[0] not in GROUPS} <= CHANGED_FOR_THE_SMALL_PRIOR
  assert all(small[key] == default[key] for key in small if key.split(".")[0] in ("camera", "background", "prior"))
  assert small["training.steps"] <= 500 and small["render.height"] <= 64


def test_a_prior_of_another_kind(get_config):
  """DreamFusionAcc runs IF at guidance 20; a published prior alone is run as threestudio runs its kind."""
  assert validation.validate(get_config("dreamfusionacc,if-m")).distillation.guidance_scale == (20.0,)
  for prior, recipe in (("sd15", "threestudio_sd"), ("DeepFloyd/IF-I-M-v1.0", "threestudio_if")):
    assert get_config(prior).to_dict() == get_config(f"{recipe},{prior}").to_dict()


@pytest.mark.parametrize("words, parts", [
  ("dreamfusio", ("'dreamfusio' is neither a recipe", "dreamfusionacc", "sd21-base", "owner/name")),
  ("dreamfusion,sd51", ("'sd51' is neither a recipe",)),
  ("dreamfusion,threestudio_sd", ("more than one recipe (dreamfusion, threestudio_sd)", "keep one")),
  ("sd15,dreamfusion,shapeworld", ("more than one prior (sd15, shapeworld)",))])
def test_words_that_mean_nothing(get_config, words, parts):
  with pytest.raises(validation.ConfigError) as caught:
    get_config(words)
  assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


@pytest.mark.parametrize("words", ["dreamfusion,owner/name", "threestudio_sd,owner/name", "dreamfusionacc,shapeworld"])
def test_a_step_can_be_built(get_config, tiny_prior, words):
  """Traced, not compiled: the step of each recipe with the tiny prior, and with fewer samples, levels and blocks."""
  config = get_config(words)
  config.update_from_flattened_dict({
    "prior.path": str(tiny_prior), "prompt": "a red cube", "render.height": 16, "render.width": 16,
    "render.num_samples": 2, "render.candidates": 4, "field.hashgrid.log2_table": 8, "occupancy.resolution": 4,
    "field.hashgrid.levels": 2, "field.paper_mlp.blocks": 1})
  if config.field.hashgrid.open_levels != (0.0,):
    config.field.hashgrid.open_levels = ((0.2, 1.0), (0.6, 2.0))
  scene = step_lib.make_scene(validation.validate(config))
  prior, prior_params = priors.build(tiny_prior)
  key = jax.random.key(0)
  state = jax.eval_shape(lambda k: step_lib.new_state(scene, k), key)
  text = conditions.embed_prompts(prior, scene.config)
  after, metrics = jax.eval_shape(step_lib.make_step(scene, prior), state, dict(unet=prior_params["unet"]), text, key)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert metrics["orientation"].shape == () and bool(after.params["background"]) == ("owner" in words)
