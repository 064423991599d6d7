"""The settings that recipes, priors and generators stand for: legal, those of their sources, one line where wrong."""
import pytest

from sds_jax import settings
from sds_jax.generators.catalogue import GENERATORS
from sds_jax.priors import published
from sds_jax.settings import validate
from sds_jax.settings.recipes import image2d, image3d, text3d

WORDS = [name for name, components in published.PRIORS.items()
         if "image_encoder" not in components and name not in text3d.RECIPES]


@pytest.mark.parametrize("name", [*WORDS, "owner/name", "DeepFloyd/IF-I-M-v1.0"])
def test_published_priors(name):
  checked = validate(text3d.from_words(name))
  assert (checked.prior.name, checked.prior.dtype, checked.training.steps) == (name, "bfloat16", 10_000)
  assert checked.distillation.guidance_scale == (20.0 if "if" in name.lower() else 100.0)
  assert checked.distillation.guidance_convention == "dreamfusion"


@pytest.mark.parametrize("words", ["zero123", "dreamfusion,stable-zero123", "bennyguo/zero123-diffusers",
                                   "shapeworld-views"])
def test_priors_of_photos_are_refused_before_they_are_fetched(words):
  with pytest.raises(settings.ConfigError, match="is conditioned on an image, not on text: use configs/image.py"):
    validate(text3d.from_words(words))


@pytest.mark.parametrize("words", ["shapeworld", ""])
def test_the_shipped_prior(words):
  checked = validate(text3d.from_words(words))
  assert (checked.prior.name, checked.prior.dtype, checked.field.name) == ("shapeworld", "float32", "mlp")


PUBLISHED = {
  "mvdream": {
    "prior.name": "mvdream", "training.steps": 10_000, "training.views": 4, "camera.group": 4,
    "distillation.guidance_convention": "diffusers", "distillation.guidance_scale": 50.0,
    "distillation.guidance_rescale": 0.5, "distillation.rescale_space": "x0",
    "distillation.weighting": "sigma_over_alpha", "distillation.view_words": "none",
    "distillation.t_min": ((0.0, 0.98), (0.8, 0.02)), "distillation.t_max": ((0.0, 0.98), (0.8, 0.5)),
    "camera.elevation_deg": (0.0, 30.0), "camera.distance": (0.8, 1.0), "camera.relative": True,
    "camera.fov_deg": (15.0, 60.0), "camera.position_jitter": 0.0, "camera.target_std": 0.0, "camera.up_std": 0.0,
    "camera.stratified": False, "shading.albedo_until": 0.5, "shading.ambient": 0.0, "shading.ambient_spread": 1.0,
    "render.height": 64, "render.milestones": ((0.5, 256),), "field.name": "hashgrid",
    "background.name": "harmonics", "loss.orientation": ((0.0, 10.0), (0.5, 1000.0)), "loss.opacity": 0.0,
    "optimizer.name": "adamw", "optimizer.learning_rate": 0.01, "optimizer.background_factor": 0.1},
  # Once more by hand, from the publications.
  "dreamfusion": {
    "prior.name": "if", "training.steps": 15_000, "training.views": 4, "render.height": 64,
    "distillation.guidance_convention": "dreamfusion", "distillation.guidance_scale": 100.0,
    "distillation.t_min": 0.02, "distillation.t_max": 0.98, "distillation.weighting": "sigma2",
    "camera.elevation_deg": (-10.0, 90.0), "camera.distance": (1.0, 1.5), "camera.focal": (0.7, 1.35),
    "camera.position_jitter": 0.1, "camera.target_std": 0.2, "camera.up_std": 0.02, "shading.distance": (0.8, 1.5),
    "shading.albedo_until": 1000 / 15_000, "shading.lambertian": 0.375, "shading.textureless": 0.375,
    "shading.ambient": 0.1, "field.name": "paper_mlp", "field.paper_mlp.hidden": 128, "field.paper_mlp.blocks": 5,
    "field.paper_mlp.num_octaves": 8, "field.paper_mlp.variance": ((0.0, 0.05), (5000 / 15_000, 0.002)),
    "field.density": "exp", "field.blob": "gaussian", "field.blob_scale": 5.0, "field.blob_radius": 0.2,
    "background.name": "mlp", "loss.orientation": ((0.0, 1e-4), (5000 / 15_000, 1e-2)), "loss.opacity": 1e-3,
    "optimizer.learning_rate": 1e-4, "optimizer.warmup_steps": 3000, "optimizer.final_fraction": 0.01},
  "dreamfusionacc": {
    "prior.name": "sd21-base", "training.steps": 10_000, "training.views": 1, "render.height": 256,
    "distillation.guidance_convention": "diffusers", "distillation.guidance_scale": 100.0,
    "camera.elevation_deg": (-30.0, 90.0), "camera.distance": (1.2, 2.0), "camera.focal": (0.7, 1.35),
    "camera.position_jitter": 0.0, "shading.albedo_until": 0.2, "shading.lambertian": 0.75,
    "shading.textureless": 0.125, "shading.ambient": 0.1, "shading.ambient_spread": 0.9, "field.name": "hashgrid",
    "field.hashgrid.levels": 16, "field.hashgrid.coarsest": 16, "field.hashgrid.finest": 4096,
    "field.hashgrid.log2_table": 19, "field.hashgrid.hidden": 32, "field.hashgrid.open_levels": 0.0,
    "field.density": "softplus", "field.density_bias": -1.0, "field.blob": "linear", "field.blob_scale": 10.0,
    "field.blob_radius": 0.5, "background.name": "harmonics", "background.harmonics.degree": 4,
    "background.harmonics.hidden": 16, "background.harmonics.depth": 1, "background.random_colour": 0.0,
    "loss.orientation": 1e-2, "loss.opacity": 0.0, "loss.entropy": 0.0, "optimizer.learning_rate": 1e-2,
    "optimizer.b1": 0.9, "optimizer.b2": 0.99, "optimizer.eps": 1e-15, "optimizer.background_factor": 0.1,
    "occupancy.resolution": 128, "occupancy.every": 10, "occupancy.decay": 0.6},
  "threestudio_sd": {
    "prior.name": "sd21-base", "training.steps": 10_000, "training.views": 1, "render.height": 64,
    "distillation.guidance_convention": "dreamfusion", "distillation.guidance_scale": 100.0,
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
    "loss.orientation": ((0.0, 10.0), (5000 / 10_000, 1000.0)), "loss.opacity": 1.0, "loss.entropy": 0.0,
    "optimizer.learning_rate": 1e-2, "optimizer.b1": 0.9, "optimizer.b2": 0.99, "optimizer.eps": 1e-15,
    "optimizer.warmup_steps": 0, "optimizer.final_fraction": 1.0, "optimizer.background_factor": 0.1,
    "occupancy.resolution": 32},
}
PUBLISHED["threestudio_if"] = {**PUBLISHED["threestudio_sd"], "prior.name": "if-xl",
                               "distillation.guidance_scale": 20.0, "camera.elevation_deg": (-10.0, 90.0)}
CHANGED_FOR_THE_SMALL_PRIOR = {
  "distillation.sds.guidance_scale", "distillation.t_sampler", "field.bound", "field.hashgrid.levels",
  "field.hashgrid.coarsest", "field.hashgrid.finest", "field.hashgrid.log2_table", "field.hashgrid.open_levels",
  "field.paper_mlp.hidden", "field.paper_mlp.blocks", "optimizer.learning_rate", "optimizer.warmup_steps",
  "optimizer.background_factor", "negative_prompt"}
"""And the groups below."""
GROUPS = {"prompt", "prior", "camera", "background", "render", "occupancy", "export", "training"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_constants(flatten, name):
  found = flatten(validate(text3d.from_words(name)))
  assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]
  assert set(PUBLISHED) == set(text3d.RECIPES)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("prior", ["shapeworld", *WORDS, "owner/name"])
def test_every_recipe_takes_every_prior(name, prior):
  for words in (f"{name},{prior}", f" {prior} , {name}"):
    assert validate(text3d.from_words(words)).prior.name == prior


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_small_prior_changes(flatten, name):
  """Only what the docstring of the recipes says; cameras, background and images are those that the prior knows."""
  large, small, default = (flatten(c) for c in (
    text3d.from_words(name), text3d.from_words(f"{name},shapeworld"), settings.defaults()))
  changes = {key for key in small if small[key] != large[key]}
  assert {key for key in changes if key.split(".")[0] not in GROUPS} <= CHANGED_FOR_THE_SMALL_PRIOR
  assert all(small[key] == default[key] for key in small if key.split(".")[0] in ("camera", "background", "prior"))
  assert small["training.steps"] <= 500 and small["render.height"] <= 64


def test_a_prior_of_another_kind():
  """DreamFusionAcc runs IF at guidance 20; a published prior alone is run as threestudio runs its kind."""
  assert validate(text3d.from_words("dreamfusionacc,if-m")).distillation.guidance_scale == 20.0
  for prior, recipe in (("sd15", "threestudio_sd"), ("DeepFloyd/IF-I-M-v1.0", "threestudio_if")):
    assert text3d.from_words(prior).to_dict() == text3d.from_words(f"{recipe},{prior}").to_dict()


@pytest.mark.parametrize("words, parts", [
  ("dreamfusio", ("'dreamfusio' is neither a recipe", "dreamfusionacc", "sd21-base", "owner/name")),
  ("dreamfusion,sd51", ("'sd51' is neither a recipe",)),
  ("dreamfusion,threestudio_sd", ("more than one recipe (dreamfusion, threestudio_sd)", "keep one")),
  ("sd15,dreamfusion,shapeworld", ("more than one prior (sd15, shapeworld)",)),
  ("a:b,c:d", ("more than one generator (a:b, c:d)", "keep one"))])
def test_words_that_mean_nothing(words, parts):
  refused(text3d.from_words, words, parts)


def refused(from_words, words, parts):
  with pytest.raises(settings.ConfigError) as caught:
    from_words(words)
  assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


@pytest.mark.parametrize("recipes, words, prior", [
  (text3d, "my.module:make", "shapeworld"), (text3d, "dreamfusion, my.module:make,sd15", "sd15"),
  (image3d, "my.module:make", "shapeworld-views"), (image3d, "magic123,my.module:make", "zero123"),
  (image2d, "my.module:make,sd15", "sd15")])
def test_a_generator_of_the_users_own(recipes, words, prior):
  config = recipes.from_words(words)
  assert (config.generator.name, config.prior.name) == ("my.module:make", prior)


@pytest.mark.parametrize("recipe", image3d.PUBLISHED)
@pytest.mark.parametrize("prior", [None, "shapeworld-views", "zero123", "owner/name"])
def test_recipes_of_photos(recipe, prior):
  config = image3d.from_words(f"{recipe},{prior}" if prior else recipe)
  if config.loss.words != 0.0:
    config.prompt = "a hamburger"
  checked = validate(config)
  assert checked.prior.name == (prior or image3d.PRIORS[recipe])
  if prior != "shapeworld-views":
    assert checked.camera.fov_deg == ((40.0, 40.0) if recipe == "magic123" else (20.0, 20.0))
    assert checked.field.name == "hashgrid" and checked.background.name == "white"


@pytest.mark.parametrize("words, parts", [
  ("zero124", ("'zero124' is not a recipe (zero123, stable-zero123, magic123)", "shapeworld-views", "owner/name")),
  ("zero123,magic123", ("in this order",)), ("owner/name,zero123", ("in this order",)),
  ("a:b,c:d", ("more than one generator",))])
def test_words_of_photos_that_mean_nothing(words, parts):
  refused(image3d.from_words, words, parts)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_of_images(name):
  checked = validate(image2d.from_words(name))
  assert checked.generator.name == name and checked.prior.name == "shapeworld"


@pytest.mark.parametrize("words, parts", [
  ("fourrier", ("'fourrier'", "no generator (legal: pixels, fourier")),
  ("dreamfusion", ("dreamfusion is a recipe of objects", "configs/text.py")),
  ("pixels,fourier", ("more than one generator (pixels, fourier)",)),
  ("sd15,if", ("more than one prior (sd15, if)",))])
def test_words_of_images_that_mean_nothing(words, parts):
  refused(image2d.from_words, words, parts)


@pytest.mark.parametrize("task", settings.TREES)
def test_the_reference_has_every_setting(flatten, task):
  page = settings.reference_markdown(task)
  assert all(f"| `{name}` |" in page for name in flatten(settings.TREES[task]()))
  assert all(len(line.replace("\\|", "").split("|")) == 6 for line in page.splitlines() if line.startswith("|"))


def test_recipes_of_photos_have_the_published_values():
  """Once more by hand, from the last configurations of threestudio: step s of n is the fraction s / n."""
  steps, quarter = 600, 1 / 4  # a quarter: normals in [-1, 1], not [0, 1]
  zero = validate(image3d.from_words("zero123"))
  assert (zero.prior.name, zero.training.steps, zero.training.views) == ("zero123-xl", steps, 12)
  assert (zero.camera.distance, zero.camera.fov_deg, zero.camera.elevation_deg) == (
    (3.8, 3.8), (20.0, 20.0), (-10.0, 80.0))
  assert zero.picture.elevation_deg == 5.0 and zero.distillation.guidance_scale == 3.0
  for schedule, first, last in ((zero.distillation.t_min, 0.4, 0.2), (zero.distillation.t_max, 0.85, 0.5)):
    assert schedule == ((0.0, first), (pytest.approx(200 / steps, abs=1e-3), last))
  loss = zero.loss
  assert (loss.sds, loss.rgb, loss.mask, loss.orientation, loss.opacity, loss.entropy, loss.smoothness) == (
    0.1, 500.0, 50.0, 1.0, 0.1, 0.1, 8.0 * quarter)
  config = image3d.from_words("magic123")
  config.prompt = "a hamburger"
  magic = validate(config)
  assert (magic.prior.name, magic.words.prior, magic.training.steps, magic.training.views) == (
    "zero123", "sd15", 10_000, 1)
  loss = magic.loss
  assert (loss.sds, loss.words, loss.rgb, loss.mask, loss.smoothness, loss.orientation) == (
    1.0, 0.025, 1000.0, 100.0, 1000.0 * quarter, 0.0)
  assert (magic.distillation.t_min, magic.distillation.t_max, magic.words.guidance_scale) == (0.2, 0.6, 100.0)
