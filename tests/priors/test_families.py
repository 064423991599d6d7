"""The table of families: each folder has one family, and a new family needs its module and an entry."""
import json
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sds_jax
from sds_jax.diffusion.schedules import schedule_from_config
from sds_jax.priors import families, published, sources
from sds_jax.priors.assemble import StoredNetworks, read_scheduler
from sds_jax.priors.base import Family, Prior, PromptError
from sds_jax.priors.families import shapeworld
from sds_jax.priors.loading.checkpoint import Component, write_component
from sds_jax.priors.loading.hub import Files
from sds_jax.priors.loading.names import NameTable
from sds_jax.priors.spaces import pixel_space


# Start of the example in docs/how-to/add-a-prior-family.md.
class LabelNet(nn.Module):
  """Predicts the noise from z_t [B, H, W, 3] and a one-hot label [B, classes]."""
  classes: int
  width: int
  dtype: jnp.dtype = jnp.float32

  @classmethod
  def from_config(cls, config, **fields):
    return cls(config["classes"], config["width"], **fields)

  def example_inputs(self):
    return jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32), jax.ShapeDtypeStruct((1, self.classes), jnp.float32)

  @nn.compact
  def __call__(self, z, label):
    hidden = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv_in")(z)
    hidden += nn.Dense(self.width, dtype=self.dtype, name="label_proj")(label)[:, None, None]
    return nn.Conv(3, (3, 3), dtype=self.dtype, name="conv_out")(nn.silu(hidden))


NET = Component(LabelNet, "diffusion_pytorch_model", NameTable())


def open_folder(source, index, options):
  networks = StoredNetworks(source.folder, options.dtype)
  net = networks.open("net", NET)  # from net/config.json and the header of net/diffusion_pytorch_model.safetensors
  space = pixel_space(index["image_size"])

  def embed(prompts):
    return {"label": jax.nn.one_hot(jnp.asarray([index["labels"].index(prompt) for prompt in prompts]), net.classes)}

  def denoise(params, z_t, t, cond):
    return net.apply({"params": params["net"]}, z_t, cond["label"]).astype(z_t.dtype)

  def check_prompt(prompt, view_words=False):
    if prompt not in index["labels"]:
      raise PromptError(f"{prompt!r} is none of {', '.join(index['labels'])}")

  prior = Prior(
    name=source.name, source=source, image_size=space.image_size, x_shape=space.x_shape, x_bound=space.bound,
    schedule=schedule_from_config(read_scheduler(source)), prediction_type="epsilon", embed=embed,
    encode=space.encode, decode=space.decode, denoise=denoise, check_prompt=check_prompt)
  return prior, networks.weights()


LABELS = Family(
  name="labels", layout="'LabelPipeline'", matches=lambda index: index.get("_class_name") == "LabelPipeline",
  files=lambda index: Files({"net": NET}), open=open_folder)
# End of the example.


@pytest.fixture
def folder(tmp_path, random_params):
  config = dict(classes=2, width=4)
  write_component(tmp_path / "net", NET, config, random_params(LabelNet.from_config(config)), jnp.float32)
  (tmp_path / "scheduler").mkdir()
  for name, value in (
      ("scheduler/scheduler_config", dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)),
      ("model_index", dict(_class_name="LabelPipeline", image_size=8, labels=["cat", "dog"]))):
    (tmp_path / f"{name}.json").write_text(json.dumps(value))
  return tmp_path


def test_a_new_family_is_an_entry_in_the_table(folder, monkeypatch):
  """From a folder to a gradient, with nothing but the entry: SDS is (eps_hat - eps) sigma^2 dx/dimage."""
  with pytest.raises(ValueError, match="_class_name='LabelPipeline' is not supported; supported: 'StableDiff.*'IFPipe"):
    sds_jax.build_prior(folder)
  monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES, LABELS])
  prior, params = sds_jax.build_prior(folder)
  assert sources.missing(folder) == [] and not sources.is_small(str(folder)) and set(params) == {"net"}
  cond = prior.embed(["dog", "cat"])
  prior.check_prompt("dog")
  with pytest.raises(PromptError, match="'red' is none of cat, dog"):
    prior.check_prompt("red")

  def loss(image, key):
    x = prior.encode(params, image, key)
    return sds_jax.score_distillation(prior.denoise, params, prior.schedule, x, key, cond)

  gradient, aux = jax.grad(loss, has_aux=True)(jnp.full((2, 8, 8, 3), 0.5), jax.random.key(0))
  weight = prior.schedule.sigma[aux.t][:, None, None, None] ** 2
  np.testing.assert_allclose(gradient, 2 * weight * (aux.eps_hat - aux.eps) / 2, rtol=1e-4, atol=1e-6)
  assert float(jnp.abs(aux.eps_hat).max()) > 1e-3


def test_the_page_shows_the_example():
  page = pathlib.Path(__file__).parents[2] / "docs" / "how-to" / "add-a-prior-family.md"
  marks = r"(?s)# Start of the example in docs/how-to/add-a-prior-family.md.\n(.*)# End of the example.\n"
  example = re.search(marks, pathlib.Path(__file__).read_text(encoding="utf-8"))[1].strip()
  block = page.read_text(encoding="utf-8").split("```py\n")[1].split("```")[0]
  assert example in block and len(block.splitlines()) < 80
  exec(block.split("\n\n\n")[0], {})  # noqa: S102 (the page's imports exist)


def test_names_belong_to_one_family():
  names = [name for family in families.FAMILIES for name in [*family.published, *family.shipped]]
  assert len(set(names)) == len(names) == len(sources.HUB_IDS) + len(sources.SHIPPED)
  assert set(published.PRIORS) == set(sources.HUB_IDS)
  for name in sources.SHIPPED:
    index = json.loads((sources.shipped_folder(name) / "model_index.json").read_text())
    assert [family for family in families.FAMILIES if family.matches(index)] == [families.family_of_shipped(name)]


@pytest.mark.parametrize("index, prompt, view_words, problem, of_views", [
  (dict(vocabulary=["a", "red", "cube"]), "a red cube", False, None, None),
  (dict(vocabulary=["a", "red", "cube"]), "a red dog", True, "the prior doesn't know 'dog' in 'a red dog'; it", False),
  (dict(vocabulary=["a", "red", "cube"]), "a red cube", True, "doesn't know 'front', 'view' in 'a red cube, fr", True),
  ({}, "anything at all", True, None, None)])
def test_prompts_of_a_vocabulary(index, prompt, view_words, problem, of_views):
  check = shapeworld._language(index)["check_prompt"]
  if problem is None:
    check(prompt, view_words)
  else:
    with pytest.raises(PromptError, match=problem) as caught:
      check(prompt, view_words)
    assert caught.value.view_words is of_views


@pytest.mark.parametrize("prompt, view_words, problem", [
  ("a red cube, front view", False, None), ("a red cube", True, None),
  ("a red cube, front view", True, "view words are added for each camera, so the prompt must have none"),
  ("a crimson cube", True, "unknown word 'crimson' in 'a crimson cube'. ShapeWorld knows the shapes .* and the c"),
  ("cube red", False, "an object is a colour and a shape, not 'cube red'")])
def test_prompts_of_the_shipped_prior_are_captions(prompt, view_words, problem):
  index = json.loads((sources.shipped_folder() / "model_index.json").read_text())
  check = shapeworld._language(index)["check_prompt"]
  if problem is None:
    check(prompt, view_words=view_words)
  else:
    with pytest.raises(PromptError, match=problem):
      check(prompt, view_words=view_words)
