"""The Python blocks of README.md and of the pages run, and compute what the text states."""
import pathlib
import re

import jax
import jax.numpy as jnp

from sds_jax import settings as settings_lib
from sds_jax.diffusion.estimators import Moment

ROOT = pathlib.Path(__file__).parents[2]
RUN_HERE = {"docs/quickstart.md", "docs/guides/library.md", "docs/guides/images.md", "docs/guides/settings.md",
            "docs/how-to/add-an-estimator.md", "docs/how-to/add-a-representation.md"}


def run(blocks, names=None):
  """Executes the blocks of a page in one namespace and returns it."""
  names = {} if names is None else names
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a reader's session
    for block in blocks:
      exec(block, names)  # noqa: S102
  return names


def test_every_page_with_code_is_run():
  pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")
           if re.search("^```python$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)}
  assert pages == RUN_HERE


def test_readme(blocks):
  block, = blocks("README.md")
  names = run([block], dict(
      my_denoiser=lambda params, z, t, cond: params * z + cond[:, None, None, None],
      my_generator=lambda theta, key: jax.nn.sigmoid(theta) + 0.0 * jax.random.normal(key, theta.shape),
      my_params=jnp.float32(0.3), text=jnp.ones(2), empty=jnp.zeros(2), theta=jnp.zeros((2, 8, 8, 3))))
  assert names["grads"].shape == (2, 8, 8, 3) and bool(jnp.all(jnp.isfinite(names["grads"])))
  assert float(jnp.abs(names["grads"]).max()) > 1e-3 and names["aux"].t.shape == (2,)
  assert block.splitlines()[:5] == (ROOT / "docs/guides/library.md").read_text().split("```py\n")[1].splitlines()[:5]


def test_quick_start(blocks):
  names = run(blocks("docs/quickstart.md"))
  assert 0.4 < float(jnp.tanh(names["theta"]).mean()) < 0.8


def test_library_with_a_prior_of_the_package(blocks):
  names = run(blocks("docs/guides/library.md")[:1])
  gradient = jax.eval_shape(names["gradient"], names["theta"], names["params"], jax.random.key(0))
  assert gradient.shape == names["theta"].shape == (64, 64, 3)


def test_library(blocks):
  names = run(blocks("docs/guides/library.md")[1:])
  alone = jnp.stack([names["grad_fn"](names["theta"], label, names["key"]) for label in (0, 1)])
  assert jnp.allclose(names["two"], alone, atol=1e-5)
  for result in ("ran", "fitted"):  # towards the images of label 1, somewhat beyond them under guidance
    assert 0.3 < float(jnp.tanh(names[result]).mean()) < 0.9
  devices = names["devices"]
  whole = jax.grad(names["batch_loss"])(names["theta"], jnp.arange(2 * devices))
  assert devices > 1 and jnp.allclose(names["by_pmap"][devices - 1], whole, atol=1e-5)
  assert jnp.allclose(names["by_shards"], whole, atol=1e-5)
  assert float(jnp.abs(names["grads"]).max()) > 0 and float(jnp.abs(names["phi_grad"])) > 0
  assert float(jnp.abs(names["theta_grad"]).max()) > 0 and names["aux"].eps_hat.shape == (1, 8, 8, 3)


def test_a_generator_of_ones_own_needs_no_registration(blocks, monkeypatch):
  """The block of the page, with one step of a small batch."""
  config = settings_lib.defaults("image2d")
  config.training.update(steps=1, views=1)
  config.optimizer.warmup_steps = 0
  monkeypatch.setattr(settings_lib, "defaults", lambda task: config)
  names = run(blocks("docs/guides/images.md"))
  assert names["theta"].shape == (64, 64, 3) and float(jnp.abs(names["theta"]).max()) > 1e-3


def test_settings_file_of_ones_own(blocks):
  assert tuple(run(blocks("docs/guides/settings.md"))["get_config"]().camera.elevation_deg) == (0.0, 30.0)


def test_how_to_add_an_estimator(blocks):
  names = run(blocks("docs/how-to/add-an-estimator.md"))
  assert names["gradient"].shape == (2, 8, 8, 3) and float(jnp.abs(names["gradient"]).max()) > 0
  assert float(names["SPEC"].keywords(names["Options"](), Moment(progress=0.5))["share"]) == 0.75


def test_how_to_add_a_representation(blocks):
  """The ball fills the middle of the image, and moves with its centre."""
  names = run(blocks("docs/how-to/add-a-representation.md"))
  opacity = names["image"]["opacity"]
  assert float(opacity[16, 16]) > 0.99 and float(opacity[0, 0]) < 0.01
  with jax.numpy_rank_promotion("allow"):
    def brightness(params):
      return names["ball"].render(params, names["camera"], 32, jax.random.key(1))["rgb"].sum()

    assert float(jax.grad(brightness)(names["params"])["radius"]) > 0
