"""Random hostile command lines: wrong or unusual settings, prompts, folders and flags."""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sds_jax.diffusion import timesteps, weightings
from sds_jax.drills import tiny
from sds_jax.fields import background, field
from sds_jax.generators import catalogue
from sds_jax.shapeworld import sample_photos
from sds_jax.training import config as config_lib, distil, image2d_config, image3d_config

Draw = Callable[[random.Random, "FuzzJob"], list[str]]
"""(random generator, base job) -> arguments after the arguments of the base."""

# Python limits the digits of int() to 4,300 by default.
HUGE = "9" * 5000
"""More digits than `int` accepts."""
WRONG: dict[type, list[str]] = {
    int: ["one", "1.5", "", "nan", "True", "[]", "0x10", HUGE, "-" + HUGE, "(1,)", "1 2", "\x00", "None", "1e3", "∞"],
    float: ["near", "nan", "inf", "-inf", "", "()", "1,5", "--1", "0x1p3", "1e999", "\x00", "NaN", "None", "{}"],
    bool: ["maybe", "2", "", "None", "nan", "yes!", "\x00", "(True,)"],
    str: ["", " ", "\n", "../x", "<script>", "nan", "a b", "\x00", "\ud800", "\u202e", "x" * 10_001, "None"],
    tuple: ["x", "(", ")", "", "((),)", "(((1,2),),)", "(nan,)", "(inf,)", "(1e999,)", "('a',)", "(1,'b')",
            "(None,)", "((0.0,1.0),(0.0,2.0))", "((0.5,),)", "{}", "{1:2}", "(1j,)", "(b'x',)", f"({HUGE},)",
            "(" * 300 + ")" * 300, "(1,)" + "\x00", "(True,)", "((0,0.1),(1,))", "(lambda: 1,)",
            "(1" + "0" * 400 + ",)", "[[[]]]", "__import__"],
}
"""Type of a setting -> values refused by (nearly) every setting of the type, as typed."""
STRANGE: dict[type, list[str]] = {
    int: ["0", "1", "2", "3", "-1", "-0", "1_0", "٣", str(2**31), str(2**32), str(2**63), str(2**64), "1" + "0" * 30,
          str(-2**63), str(2**31 - 1)],
    float: ["0", "-0.0", "1", "-1", "0.5", "1e-30", "5e-324", "1e30", "1e308", "-1e308", "1" + "0" * 300,
            "1" + "0" * 400, str(2**63)],
    bool: ["True", "False", "1", "0", "true"],
    tuple: ["(0,)", "(1,)", "(0.5,)", "(-1,)", "(1e30,)", "(1e-30,)", "(1e308,)", "((0.0,0.1),(1.0,0.9))", "()",
            "((0,1e-3),(1e-9,1),(1,1))", "(0.5,0.5)", "(2,3)", "(1,2,3)", "[1.0]", f"({2**70},)", "((0.3,40),(0.6,8))"],
}
"""Type of a setting -> values legal for some settings; no value makes a legal run very long."""
NAMES: dict[str, list[str]] = {
    "distillation.estimator": list(distil.NAMES), "distillation.weighting": list(weightings.WEIGHTINGS),
    "distillation.t_warp": [*timesteps.WARPS, "dreamtime"], "distillation.t_sampler": list(timesteps.SAMPLERS),
    "field.name": list(field.FIELDS), "field.density": list(field.ACTIVATIONS), "field.blob": list(field.BLOBS),
    "background.name": list(background.BACKGROUNDS), "optimizer.name": ["adam", "adan", "adamw", "sgd"],
    "render.normals": ["analytic", "difference"], "resume": ["auto", "must", "never"],
    "prior.dtype": ["float32", "bfloat16"], "distillation.view_words": ["nearest", "blended", "none"],
    "distillation.perp_neg": ["none", "threestudio", "stable_dreamfusion"],
    "picture.framing": ["auto", "centre", "keep"], "picture.background": ["auto", "alpha", "plain", "rembg"],
    "picture.elevation_deg": ["auto", "0", "-89", "90", "nan", "1e999", " 5 ", "٣", "auto ", "high"],
    "generator.name": [*catalogue.GENERATORS, "nope:x", ":", "a:", ":b", "os:getcwd", "json:loads", "a\0b:c", "..:x",
                       ".x:y", "\U0001f600:x", "sys:nothing", "a.b.c:d:e"]}
# The first setting is drawn most often, see `_prompt`.
TEXTS = ["prompt", "negative_prompt", "distillation.source_prompt", "csd.negative_prompt", "bridge.target_words"]
PROMPTS = [
    "a red cube\nand a blue cone", "\n", " ", "a\tred\rcube", "\U0001f600", "a \U0001f600 cube", "\u202ea red cube",
    "\ud800", "a red cube \udcff", "\x00", "a\x00red cube", "\x1b[31ma red cube\x1b[0m", "\x07\x08\x7f", "../../x",
    "../../../../../../../../tmp/x", "/etc/passwd", "/", ".", "..", "~", "C:\\x", "CON", "<script>alert(1)</script>",
    "</script><!--", "a<b>&amp;\"'", "\u2028\u2029", "a red cube|a blue cube", "|", "x" * 10_000, "x" * 10_001,
    "red cube " * 1_111, "\u0301" * 50, "\ufeffa red cube", "{{data}}", "%s%n", "${HOME}", "$(touch x)", "`id`", "-rf",
    "--help", "a red cube", "A RED CUBE", "\u0430 red cube", "\uff41 red cube", "\ufffe", "\U0010ffff", "'", '"', "\\"]
PATHS = ["", " ", ".", "~", "-", "/", "/dev/null", "/dev/null/x", "/dev/zero", "/proc/none", "/proc/self/mem",
         "a\0b", "x" * 300, "x/" * 3000, "a\nb", "a\"b'c", "\u202ex", "\U0001f600", "\udcff", "\ud800", "../x",
         "../../x", "owner/name", "https://host/x", "~nobody-here/x", "file", "loop", "<b>", "$(id)", "%00", "a/../b"]
WORKDIRS = [path for path in PATHS if path not in ("/", "../../x", "~nobody-here/x")]
"""Folders private to a try; folders shared with other processes are excluded."""
# Unknown names, missing values, illegal modes and broken files of settings.
FLAGS = [
    ["--config.zzz=1"], ["--config.render.heigth=1"], ["--config.=1"], ["--config..a=1"], ["--config.prompt.x=1"],
    ["--config.render=1"], ["--config.camera={}"], ["--zzz"], ["--zzz=\ud800"], ["extra"], ["-"], ["\n"], ["\x00"],
    ["--config.camera.distance[0]=1"], ["--config.__class__=1"], ["--config.update=1"], ["--config.seed"],
    ["--config.\u202eseed=1"], ["--config.keys=1"], ["--noconfig.seed"], ["--noconfig.zzz"], ["--config.seed=1=2"],
    ["--mode=paint"], ["--mode="], ["--mode"], ["--mode=export"], ["--mode=render", "--workdir=none"],
    ["--mode=evaluate", "--workdir=/dev/zero"], ["--mode=export", "--workdir=file"],
    ["--mode=export", "--workdir=loop"],
    ["--mode=export", "--workdir=a\0b"], ["--config=nothing.py"], ["--config=/dev/null"], ["--config="], ["--config=."],
    ["--config=file"], ["--config=a\0b"], ["--config=" + "x" * 5000], ["--config=a\nb"], ["--flagfile=nothing"],
    ["--config=file:a"], ["--verbosity=x"], ["--config.field.mlp=()"], ["--config.prior.name.x=1"], ["--workdir"]]
ARGUMENTS = ["x", "pixels,cppn", "dreamfusion,threestudio_sd", "sd15", "a/b",
             "\x00", "\nx", "../x", "x" * 5000, "\ud800", "\U0001f600", "a:b", ":", "::", "os:getcwd", "/dev/zero", "~",
             "/proc/self/mem", "file", "loop", "a\0b", "./.", "sd15,shapeworld", "owner/name@x", "-", "'", "{}"]
"""Arguments after the colon of --config, without the base; all are refused without a network connection."""


class FuzzJob:
  """A file of settings, the base arguments of its tries, and all its settings by dotted name."""

  def __init__(self, file: Path, reference: ConfigDict, base: Mapping[str, Any]):
    self.file, self.settings = file, dict(_flat(reference))
    self.base = [f"--config.{name}={value}" for name, value in base.items()]

  def random_setting(self, rng: random.Random, *kinds: type) -> str:
    """Draws the name of a setting of the given types."""
    # Exact types: bool is a subclass of int.
    return rng.choice([name for name, value in self.settings.items() if type(value) in kinds])


def jobs(configs: Path, scratch: Path) -> list[FuzzJob]:
  """Builds tiny single-step jobs for the three configs.

  configs/text.py, image2d.py and image.py.

  Args:
    configs: folder of the files.
    scratch: folder of `write_files`.
  """
  prior = scratch / PRIOR
  # A step and no renders: the drill tests parsing and checks, not training.
  common = {"prior.path": prior, "prompt": "a red cube", "training.steps": 1, "training.log_every": 1,
            "training.render_every": 0, "optimizer.warmup_steps": 0}
  pictures = {**common, "generator.size": 16, "training.views": 1}
  # Without shading: the second derivatives of shading dominate the compilation.
  scene = {**tiny.SETTINGS, **common, "training.views": 1, "shading.lambertian": 0.0, "occupancy.every": 0}
  from_photo = {**scene, "prior.path": scratch / VIEW_PRIOR, "image": scratch / PICTURE, "prompt": ""}
  return [FuzzJob(configs / "text.py", config_lib.default(), scene),
          FuzzJob(configs / "image2d.py", image2d_config.default(), pictures),
          FuzzJob(configs / "image.py", image3d_config.default(), from_photo)]


PRIOR, VIEW_PRIOR, PICTURE = "prior", "view_prior", "picture.png"


def write_files(scratch: Path) -> None:
  """Writes two tiny priors and a photo for `jobs`."""
  # Both priors have random weights; no try depends on their quality.
  tiny.write_prior(scratch / PRIOR)
  tiny.write_view_prior(scratch / VIEW_PRIOR)
  sample_photos.write_photo(sample_photos.draw_truth(0, caption="a red cube"), 32, scratch / PICTURE)


def tries(configs: Path, scratch: Path, num: int, seed: int, strange: float) -> Iterator[list[str]]:
  """Yields `num` command lines without the program.

  Equal seeds give equal command lines.

  The first three are the plain bases of the three jobs.

  Args:
    configs: folder with text.py, image2d.py and image.py.
    scratch: folder of `write_files`.
    num: number of command lines.
    seed: of the draws.
    strange: share of unusual, possibly legal command lines; the others are mistakes.
  """
  # If the plain bases were refused, a refusal of all other tries would prove nothing.
  bases = jobs(configs, scratch)
  for number in range(num):
    rng = random.Random(f"{seed}/{number}")
    job = rng.choice(bases)
    if number < len(bases):
      yield [f"--config={bases[number].file}", *bases[number].base, "--workdir=run"]
      continue
    kinds = _STRANGE if rng.random() < strange else _WRONG
    draw = rng.choices(list(kinds), list(kinds.values()))[0]
    drawn = draw(rng, job)
    arguments = drawn if any(word.startswith("--workdir") for word in drawn) else [*drawn, "--workdir=run"]
    if draw is _default_folder:  # the only tries without a folder in the arguments
      arguments = drawn
    yield arguments if draw is _argument else [f"--config={job.file}", *job.base, *arguments]


def _wrong_value(rng: random.Random, job: FuzzJob) -> list[str]:
  # Draws the type first, so that rare types are tried as often as common types.
  kind = rng.choice(list(WRONG))
  return [f"--config.{job.random_setting(rng, kind)}={rng.choice(WRONG[kind])}"]


def _strange_value(rng: random.Random, job: FuzzJob) -> list[str]:
  kind = rng.choice(list(STRANGE))
  return [f"--config.{job.random_setting(rng, kind)}={rng.choice(STRANGE[kind])}"]


def _any_value(rng: random.Random, job: FuzzJob) -> list[str]:
  """Draws a value for a setting of another type."""
  name, kind = rng.choice(list(job.settings)), rng.choice(list(WRONG))
  return [f"--config.{name}={rng.choice(WRONG[kind])}"]


def _two_values(rng: random.Random, job: FuzzJob) -> list[str]:
  return _strange_value(rng, job) + _wrong_value(rng, job)


def _choice(rng: random.Random, job: FuzzJob) -> list[str]:
  # Not every job has every setting.
  name = rng.choice([name for name in NAMES if name in job.settings])
  return [f"--config.{name}={rng.choice(NAMES[name])}"]


def _prompt(rng: random.Random, job: FuzzJob) -> list[str]:
  name = rng.choice([TEXTS[0]] * 4 + TEXTS[1:])
  return [f"--config.{name}={rng.choice(PROMPTS)}"]


def _free_prompt(rng: random.Random, job: FuzzJob) -> list[str]:
  return [*_prompt(rng, job), "--config.prior.allow_unknown_words=True"]


def _default_folder(rng: random.Random, job: FuzzJob) -> list[str]:
  return _free_prompt(rng, job)


def _prior_path(rng: random.Random, job: FuzzJob) -> list[str]:
  return [f"--config.prior.path={rng.choice(PATHS[1:])}"]


def _prior_name(rng: random.Random, job: FuzzJob) -> list[str]:
  return ["--config.prior.path=", f"--config.prior.name={rng.choice(PATHS)}"]


def _picture(rng: random.Random, job: FuzzJob) -> list[str]:
  """Draws a path without an image.

  For jobs without photos the setting itself is a mistake.
  """
  name = rng.choice(["image", "image", "picture.depth", "picture.normals"])
  return [f"--config.{name}={rng.choice(PATHS[1:])}", "--config.loss.depth=(1.0,)"]


def _source(rng: random.Random, job: FuzzJob) -> list[str]:
  return [f"--config.distillation.estimator={rng.choice(['dds', 'pds'])}",
          f"--config.distillation.source={rng.choice(PATHS)}"]


def _workdir(rng: random.Random, job: FuzzJob) -> list[str]:
  # Both ways of naming the folder of a run.
  folder = rng.choice(WORKDIRS)
  return rng.choice([[f"--workdir={folder}"], ["--workdir=", f"--config.workdir={folder}"]])


def _flag(rng: random.Random, job: FuzzJob) -> list[str]:
  return list(rng.choice(FLAGS))


def _argument(rng: random.Random, job: FuzzJob) -> list[str]:
  return [f"--config={job.file}:{rng.choice(ARGUMENTS)}"]


_WRONG: dict[Draw, float] = {_wrong_value: 5, _any_value: 4, _two_values: 1, _prompt: 2, _prior_path: 2, _prior_name: 2,
                             _picture: 2, _source: 1, _flag: 3, _argument: 1}
_STRANGE: dict[Draw, float] = {_strange_value: 4, _choice: 2, _free_prompt: 2, _default_folder: 2, _workdir: 2}
"""Draw functions with their weights."""


def _flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields dotted names and values of all settings."""
  for name in config:
    value = config[name]
    if isinstance(value, ConfigDict):
      yield from _flat(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value
