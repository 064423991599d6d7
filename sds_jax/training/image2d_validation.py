"""What is legal for the settings that only pictures have; `validation.validate` joins it to the rest."""
from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from sds_jax.generators import catalogue, surfaces
from sds_jax.training.checks import Check, above, finite, number, one_of, whole

_NO_MEANING = {
    "distillation.perp_neg": "none", "distillation.latent_until": 0.0, "distillation.view_words": "none",
    "optimizer.background_factor": 1.0}
"""Settings of the common groups that speak of 3D, and the one value that pictures take."""


def prompts_of(prompt: str) -> list[str]:
  """The prompts that `config.prompt` joins by "|"."""
  return [part.strip() for part in prompt.split("|")]


def checks() -> dict[str, Check]:
  """Dotted name -> check."""
  g, std = "generator.", number(0.0, 100.0)
  return {
      "prompt": (lambda v: len(v) <= 10_000 and all(prompts_of(v)), "a sentence of 1 to 10,000 characters, or several "
                 "with | between them"),
      g + "name": (lambda v: v in catalogue.GENERATORS or 0 < v.find(":") < len(v) - 1,
                   f"one of {', '.join(catalogue.GENERATORS)}, or package.module:function of your own"),
      g + "size": (lambda v: 8 <= v <= 1024 and v % 2 == 0, "an even number from 8 to 1024"),
      g + "particles": whole(1, 4096),
      g + "viewpoint": (lambda v: not v or (len(v) == 2 and all(map(finite, v)) and abs(v[1]) <= 90.0),
                        "(azimuth, elevation) in degrees, elevation from -90 to 90, or () to tell none"),
      g + "pixels.init_std": std,
      g + "fourier.decay": number(0.0, 4.0), g + "fourier.init_std": std,
      g + "cppn.hidden": whole(1, 1024), g + "cppn.depth": whole(1, 32),
      g + "siren.hidden": whole(1, 1024), g + "siren.depth": whole(1, 32), g + "siren.w0": above(0.0),
      g + "shared.frames": whole(1, 64), g + "shared.cutoff": number(0.0, 1024.0),
      g + "shared.own": (lambda v: finite(v) and 0.0 < v <= 100.0, "a number above 0, up to 100"),
      g + "shared.decay": number(0.0, 4.0), g + "shared.init_std": std,
      g + "symmetric.of": one_of(catalogue.WRAPPABLE),
      g + "translucent.noise": number(0.0, 1.0), g + "translucent.price": number(0.0, 1e6),
      g + "translucent.decay": number(0.0, 4.0), g + "translucent.init_std": std,
      g + "texture.shape": one_of(surfaces.SURFACES),
      g + "texture.extent": (lambda v: finite(v) and 0.0 < v <= 1.0, "a number above 0, up to 1"),
      g + "texture.resolution": whole(4, 2048), g + "texture.decay": number(0.0, 4.0), g + "texture.init_std": std,
      g + "gaussians.count": whole(1, 100_000), g + "gaussians.radius": above(0.0),
  }


def relations(config: ConfigDict) -> Iterator[str]:
  """What only two fields together can get wrong."""
  for path, only in _NO_MEANING.items():
    group, name = path.split(".")
    if config[group][name] != only:
      yield f"config.{path}={config[group][name]!r} has no meaning for pictures: leave it at {only!r}"
  g, views = config.generator, config.training.views
  if ":" in g.name:
    return  # how many frames the user's own has is known once it is imported
  frames, texts = (g.shared.frames if g.name == "shared" else 1), len(prompts_of(config.prompt))
  if views % (g.particles * frames):
    yield (f"config.training.views={views} is no multiple of config.generator.particles={g.particles} times the "
           f"{frames} frame{'s' * (frames > 1)} of {g.name}: set it to {g.particles * frames} or a multiple")
  if texts > frames:
    yield (f"config.prompt={config.prompt!r} has {texts} parts, but config.generator.name={g.name!r} makes {frames} "
           f"frame{'s' * (frames > 1)}: leave parts out, or take the generator shared with as many frames")
