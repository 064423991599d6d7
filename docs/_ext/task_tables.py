"""Makes the tables of priors, recipes and the command from the code, as Markdown."""
from __future__ import annotations

import contextlib
import io
import tomllib
from pathlib import Path

from result_tables import markdown, record

from sds_jax.commands import flags
from sds_jax.priors import sources
from sds_jax.priors.families import FAMILIES
from sds_jax.settings.recipes import image3d, text3d

ENCODERS = {"clip_text": "text", "clip_text_2": "text", "t5": "text", "text_encoder": "text", "image_encoder": "image"}
"""Network of a prior -> what it encodes."""


def prior_names() -> str:
  """Every prior with a name: family, use, repositories, number of parameters."""
  sizes, rows = record("benchmarks/records/prior-sizes.json")["priors"], []
  for family in FAMILIES:
    for name in (*family.shipped, *family.published):
      repos = ", ".join(f"[{repo}](https://huggingface.co/{repo})" for repo in sources.HUB_IDS.get(name, ()))
      networks = sizes[name]
      encoders = [network for network in ENCODERS if network in networks]
      parts = [f"U-Net {_millions(networks['unet'])}",
               f"{ENCODERS[encoders[0]]} encoder{'s' if len(encoders) > 1 else ''} "
               + " and ".join(_millions(networks[encoder]) for encoder in encoders)]
      parts += [f"VAE {_millions(networks['vae'])}"] if "vae" in networks else []
      kept = networks["unet"] + networks.get("vae", 0)
      rows.append((f"`{name}`", "photo" if family.takes_photo else "text", repos or "ships with the package",
                   ", ".join(parts), _size(2 * kept), _size(2 * sum(networks.values())) if repos else "none"))
  return markdown(("name", "for", "repositories, the first that answers is taken", "parameters",
                   "U-Net and VAE in bfloat16", "download in 16 bits"), rows)


def _millions(count: int) -> str:
  return f"{count / 1e6:,.0f} M" if count > 1e7 else f"{count / 1e6:.1f} M"


def _size(count: int) -> str:
  return f"{count / 1e9:.1f} GB" if count > 1e8 else f"{count / 1e6:.0f} MB"


def _command(config: str, words: str) -> str:
  return f"`--config=configs/{config}.py:{words}`"


def text_recipes() -> str:
  """The recipes of text to 3D, each with its own prior."""
  rows = []
  for name, recipe in text3d.RECIPES.items():
    config = text3d.from_words(name)
    rows.append((_command("text", name), f"`{recipe.prior}`", f"`{config.field.name}`",
                 f"{config.render.height}x{config.render.width}", f"{config.training.steps:,}",
                 config.training.views, _command("text", f"{name},shapeworld")))
  return markdown(
      ("recipe", "its prior", "field", "first renders", "steps", "views", "with the prior that ships"), rows)


def photo_recipes() -> str:
  """The recipes of photo to 3D, each with its own prior."""
  rows = []
  for name in image3d.PUBLISHED:
    config = image3d.from_words(name)
    rows.append((_command("image", name), f"`{image3d.PRIORS[name]}`", f"{config.training.steps:,}",
                 config.training.views, f"{config.picture.elevation_deg:g}"))
  return markdown(("recipe", "its prior", "steps", "views", "assumed elevation of the photo, degrees"), rows)


def command_help() -> str:
  """The text of `python run.py --help`."""
  with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
    flags.parse(["run.py", "--help"])
  return f"```text\n{printed.getvalue().strip()}\n```"


def extras() -> str:
  """The optional dependencies of the package."""
  project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
  content = {"video": "`turntable.mp4` in place of `.gif`",
             "background": "`rembg`, which removes the background of a photo by a network",
             "texture": "xatlas, which lays a texture onto the mesh",
             "study": "figures of the comparison of estimators",
             "docs": "the builder of this documentation",
             "test": "the tests",
             "parity": "PyTorch, diffusers and transformers, the oracles of some tests"}
  extras = project["optional-dependencies"]
  return markdown(("extra", "content"), [(f"`{name}`", content[name]) for name in extras])


TABLES = {make.__name__: make for make in (prior_names, text_recipes, photo_recipes, command_help, extras)}
"""Name -> function that makes the text."""
