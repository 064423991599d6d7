"""Random hostile command lines: settings, prompts, folders and flags that are wrong, or legal but strange."""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sds_jax import names, settings as settings_lib
from sds_jax.diffusion import timesteps, weightings
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.drills import hostile_folders, tiny
from sds_jax.fields import background, field
from sds_jax.generators import catalogue
from sds_jax.shapeworld import sample_photos
from sds_jax.views import perp_neg_weights

DrawArguments = Callable[[random.Random, "FuzzJob"], list[str]]
"""(source of randomness, job) -> arguments that follow those of the job's base."""

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
"""Type of a setting -> values, as typed, that almost no setting of the type allows."""
STRANGE: dict[type, list[str]] = {
    int: ["0", "1", "2", "3", "-1", "-0", "1_0", "٣", str(2**31), str(2**32), str(2**63), str(2**64), "1" + "0" * 30,
          str(-2**63), str(2**31 - 1)],
    float: ["0", "-0.0", "1", "-1", "0.5", "1e-30", "5e-324", "1e30", "1e308", "-1e308", "1" + "0" * 300,
            "1" + "0" * 400, str(2**63)],
    bool: ["True", "False", "1", "0", "true"],
    tuple: ["(0,)", "(1,)", "(0.5,)", "(-1,)", "(1e30,)", "(1e-30,)", "(1e308,)", "((0.0,0.1),(1.0,0.9))", "()",
            "((0,1e-3),(1e-9,1),(1,1))", "(0.5,0.5)", "(2,3)", "(1,2,3)", "[1.0]", f"({2**70},)", "((0.3,40),(0.6,8))"],
}
"""Type of a setting -> values that some settings of the type allow; no such value makes a run very long."""
_IMPORTED = ["nope:x", ":", "a:", ":b", "os:getcwd", "json:loads", "a\0b:c", "..:x", ".x:y", "\U0001f600:x",
             "sys:nothing", "a.b.c:d:e"]
"""Names of the form module:NAME that are neither a generator nor an estimator."""
NAMES: dict[str, list[str]] = {
    "distillation.estimator": [*ESTIMATORS, *_IMPORTED], "distillation.weighting": list(weightings.WEIGHTINGS),
    "distillation.t_warp": [*timesteps.WARPS, "dreamtime"], "distillation.t_sampler": list(timesteps.SAMPLERS),
    "field.name": list(field.FIELDS), "field.density": list(field.ACTIVATIONS), "field.blob": list(field.BLOBS),
    "background.name": list(background.BACKGROUNDS), "optimizer.name": ["adam", "adan", "adamw", "sgd"],
    "render.normals": ["analytic", "difference"], "resume": ["auto", "must", "never"],
    "prior.dtype": ["float32", "bfloat16"], "distillation.view_words": ["nearest", "blended", "none"],
    "distillation.perp_neg": ["none", *perp_neg_weights.VARIANTS],
    "picture.framing": ["auto", "centre", "keep"], "picture.background": ["auto", "alpha", "plain", "rembg"],
    "picture.elevation_deg": ["auto", "0", "-89", "90", "nan", "1e999", " 5 ", "٣", "auto ", "high"],
    "generator.name": [*catalogue.GENERATORS, "field", *_IMPORTED]}
"""Setting -> names, legal and not."""
EDITS = [name for name, record in ESTIMATORS.items() if "source" in record.needs]
"""Estimators that edit an image, for which `distillation.source` is legal."""
TEXTS = ["prompt", "negative_prompt", "distillation.source_prompt", "distillation.csd.negative_prompt",
         "distillation.bridge.target_words"]
"""Settings that are texts; most tries take the first."""
PROMPTS = [
    "a red cube\nand a blue cone", "\n", " ", "a\tred\rcube", "\U0001f600", "a \U0001f600 cube", "\u202ea red cube",
    "\ud800", "a red cube \udcff", "\x00", "a\x00red cube", "\x1b[31ma red cube\x1b[0m", "\x07\x08\x7f", "../../x",
    "../../../../../../../../x", "/etc/passwd", "/", ".", "..", "~", "C:\\x", "CON", "<script>alert(1)</script>",
    "</script><!--", "a<b>&amp;\"'", "\u2028\u2029", "a red cube|a blue cube", "|", "x" * 10_000, "x" * 10_001,
    "red cube " * 1_111, "\u0301" * 50, "\ufeffa red cube", "{{data}}", "%s%n", "${HOME}", "$(touch x)", "`id`", "-rf",
    "--help", "a red cube", "A RED CUBE", "\u0430 red cube", "\uff41 red cube", "\ufffe", "\U0010ffff", "'", '"', "\\"]
"""Values of TEXTS."""
PATHS = ["", " ", ".", "~", "-", "/", "/dev/null", "/dev/null/x", "/dev/zero", "/proc/none", "/proc/self/mem",
         "a\0b", "x" * 300, "x/" * 3000, "a\nb", "a\"b'c", "\u202ex", "\U0001f600", "\udcff", "\ud800", "../x",
         "../../x", "owner/name", "https://host/x", "~nobody-here/x", "file", "loop", "<b>", "$(id)", "%00", "a/../b"]
"""Paths that are no prior, no photo and no run."""
WORKDIRS = [path for path in PATHS if path not in ("/", "../../x", "~nobody-here/x")]
"""Paths of PATHS within the folder of the try; a try must not write to shared folders."""
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
"""Arguments that are mistakes."""
CONFIG_WORDS = [
    "x", "pixels,cppn", "dreamfusion,threestudio_sd", "sd15", "a/b", "\x00", "\nx", "../x", "x" * 5000, "\ud800",
    "\U0001f600", "a:b", ":", "::", "os:getcwd", "/dev/zero", "~", "/proc/self/mem", "file", "loop", "a\0b", "./.",
    "sd15,shapeworld", "owner/name@x", "-", "'", "{}"]
"""Words after the colon of --config; without a connection none is legal."""


FILES = {"text3d": "text.py", "image2d": "image2d.py", "image3d": "image.py"}
"""Task -> file of settings, in the order of `make_jobs`."""


class FuzzJob:
  """A file of settings with legal arguments, from which the tries start.

  Attributes:
    task: value of the setting `job`.
    file: configs/text.py, say.
    settings: {dotted name of a setting: the types of its values}, of the keys of WRONG.
    base: arguments that make a tiny run of one step.
  """

  def __init__(self, task: str, configs: Path, base: Mapping[str, Any]):
    """Makes a job from the settings that `base` changes, {dotted name: value}."""
    self.task, self.file = task, configs / FILES[task]
    self.settings = dict(_value_types(settings_lib.defaults(task)))
    self.base = [f"--config.{name}={value}" for name, value in base.items()]

  def choose_setting(self, rng: random.Random, kind: type) -> str:
    """Returns the dotted name of a random setting of this type."""
    return rng.choice([name for name, types in self.settings.items() if kind in types])


PRIOR, VIEW_PRIOR, PHOTO = "prior", "view_prior", "photo.png"
"""Names of the files that `write_files` writes."""


def make_jobs(configs: Path, scratch: Path) -> list[FuzzJob]:
  """Returns a job for each of configs/text.py, image2d.py and image.py.

  The files of the command lines are those of `write_files`.
  """
  # A step and no renders: the drill tests parsing and checks, not training.
  common = {"prior.path": scratch / PRIOR, "prompt": "a red cube", "training.steps": 1, "training.log_every": 1,
            "training.render_every": 0, "optimizer.warmup_steps": 0}
  images = {**common, "generator.size": 16, "training.views": 1}
  # Without shading: the second derivatives of shading dominate the compilation.
  text = {**tiny.SETTINGS, **common, "training.views": 1, "shading.lambertian": 0.0, "occupancy.every": 0}
  photo = {**text, "prior.path": scratch / VIEW_PRIOR, "image": scratch / PHOTO, "prompt": ""}
  return [FuzzJob(task, configs, base) for task, base in zip(FILES, (text, images, photo))]


def write_files(scratch: Path) -> None:
  """Writes the files of `make_jobs`.

  The files are a text-conditioned prior, an image-conditioned prior, and a photo.
  """
  tiny.write_prior(scratch / PRIOR)
  tiny.write_view_prior(scratch / VIEW_PRIOR)
  sample_photos.write_photo(sample_photos.draw_truth(0, caption="a red cube"), 32, scratch / PHOTO)


def tries(configs: Path, scratch: Path, num: int, seed: int, strange: float) -> Iterator[list[str]]:
  """Yields `num` command lines without the program's name.

  The same seed gives the same command lines.

  The first three are the plain bases of the three jobs.

  Args:
    configs: the folder with text.py, image2d.py and image.py.
    scratch: the folder of `write_files`.
    num: number of tries.
    seed: of the tries.
    strange: share of tries that may be legal and then succeed; the others contain a mistake.
  """
  # If the plain bases were refused, a refusal of all other tries would prove nothing.
  jobs = make_jobs(configs, scratch)
  for number in range(num):
    # A generator for each try: one try can be repeated without the others.
    rng = random.Random(f"{seed}/{number}")
    job = rng.choice(jobs)
    if number < len(jobs):
      yield [f"--config={jobs[number].file}", *jobs[number].base, "--workdir=run"]
      continue
    kinds = _STRANGE if rng.random() < strange else _WRONG
    draw = rng.choices(list(kinds), list(kinds.values()))[0]
    if draw is _hostile_photo:
      job = jobs[-1]
    drawn = draw(rng, job)
    names_folder = draw is _default_folder or any(argument.startswith("--workdir") for argument in drawn)
    arguments = drawn if names_folder else [*drawn, "--workdir=run"]
    yield arguments if draw is _config_words else [f"--config={job.file}", *job.base, *arguments]


def _wrong_value(rng: random.Random, job: FuzzJob) -> list[str]:
  # Draws the type first, so that rare types are tried as often as common types.
  kind = rng.choice(list(WRONG))
  return [f"--config.{job.choose_setting(rng, kind)}={rng.choice(WRONG[kind])}"]


def _strange_value(rng: random.Random, job: FuzzJob) -> list[str]:
  kind = rng.choice(list(STRANGE))
  return [f"--config.{job.choose_setting(rng, kind)}={rng.choice(STRANGE[kind])}"]


def _value_of_other_type(rng: random.Random, job: FuzzJob) -> list[str]:
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


def _prompt_of_any_words(rng: random.Random, job: FuzzJob) -> list[str]:
  return [*_prompt(rng, job), "--config.prior.allow_unknown_words=True"]


def _default_folder(rng: random.Random, job: FuzzJob) -> list[str]:
  """Returns a prompt of any words.

  The folder of the run is named after the prompt.
  """
  return _prompt_of_any_words(rng, job)


def _prior_path(rng: random.Random, job: FuzzJob) -> list[str]:
  return [f"--config.prior.path={rng.choice(PATHS[1:])}"]


def _prior_name(rng: random.Random, job: FuzzJob) -> list[str]:
  return ["--config.prior.path=", f"--config.prior.name={rng.choice(PATHS)}"]


def _photo(rng: random.Random, job: FuzzJob) -> list[str]:
  """Returns a path that is no photo.

  A job without a photo has no such setting.
  """
  name = rng.choice(["image", "image", "picture.depth", "picture.normals"])
  return [f"--config.{name}={rng.choice(PATHS[1:])}", "--config.loss.depth=(1.0,)"]


def _source(rng: random.Random, job: FuzzJob) -> list[str]:
  return [f"--config.distillation.estimator={rng.choice(EDITS)}",
          f"--config.distillation.source={rng.choice(PATHS)}"]


def _workdir(rng: random.Random, job: FuzzJob) -> list[str]:
  # Both ways of naming the folder of a run.
  folder = rng.choice(WORKDIRS)
  return rng.choice([[f"--workdir={folder}"], ["--workdir=", f"--config.workdir={folder}"]])


def _taken_folder(rng: random.Random, job: FuzzJob) -> list[str]:
  """Returns a folder with files of others.

  Some of them are in the way of a run.
  """
  return [f"--workdir={rng.choice(list(hostile_folders.FOLDERS))}"]


def _habit(rng: random.Random, job: FuzzJob) -> list[str]:
  """Returns a setting under another program's name, or a prompt or a file without a setting.
  """
  word = rng.choice(" ".join(names.HABITS.values()).split())
  value = rng.choice(["1", "0.5", "a purple cone", "", "~/x", "\ud800", "x" * 5000])
  return rng.choice([[f"--config.{word}={value}"], [f"--{word}={value}"], [f"--{word}", value], [f"{word}={value}"],
                     [value or word], [f"--config.training.{word}={value}"], ["a", "purple", word]])


def _flag(rng: random.Random, job: FuzzJob) -> list[str]:
  return list(rng.choice(FLAGS))


def _config_words(rng: random.Random, job: FuzzJob) -> list[str]:
  return [f"--config={job.file}:{rng.choice(CONFIG_WORDS)}"]


def _hostile_photo(rng: random.Random, job: FuzzJob) -> list[str]:
  """Returns a photo or a map that is damaged or unusual."""
  photo = f"photo-{rng.randrange(10**6)}.png"
  map_name = rng.choice(["depth", "normals"])
  return rng.choice([[f"--config.image={photo}"]] * 4 + [
      [f"--config.picture.{map_name}={photo}", f"--config.loss.{map_name}=1.0"]])


def _hostile_prior(rng: random.Random, job: FuzzJob) -> list[str]:
  """Returns a folder of a prior with one mistake in its configs, tokenizer or weights."""
  kind = VIEW_PRIOR if job.task == "image3d" else PRIOR
  return [f"--config.prior.path={kind}-{rng.randrange(10**6)}"]


def _hostile_config(rng: random.Random, job: FuzzJob) -> list[str]:
  """Returns a file of settings with a mistake, before the settings of the job's base."""
  return [f"--config=config-{job.task}-{rng.randrange(10**6)}.py"]


def _spoilt_run(rng: random.Random, job: FuzzJob) -> list[str]:
  """Returns the folder of a finished run with a mistake, and what to do with it."""
  folder = f"--workdir=done-{list(FILES).index(job.task)}-{rng.randrange(10**6)}"
  return [folder, rng.choice(["--mode=export", "--mode=render", "--mode=evaluate", "--mode=train",
                              "--config.resume=must", "--config.resume=never", "--config.training.steps=2"])]


_WRONG: dict[DrawArguments, float] = {
    _wrong_value: 5, _value_of_other_type: 4, _two_values: 1, _prompt: 2, _prior_path: 2, _prior_name: 2, _photo: 2,
    _source: 1, _flag: 3, _config_words: 1, _taken_folder: 3, _habit: 3, _hostile_photo: 4, _hostile_prior: 5,
    _hostile_config: 3, _spoilt_run: 4}
"""Kinds of mistakes, with their weights."""
_STRANGE: dict[DrawArguments, float] = {
    _strange_value: 4, _choice: 2, _prompt_of_any_words: 2, _default_folder: 2, _workdir: 2}
"""Kinds of arguments that may be legal, with their weights."""


def _value_types(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, tuple[type, ...]]]:
  """Yields dotted names and types of all settings."""
  for name in config:
    value = config[name]
    if isinstance(value, ConfigDict):
      yield from _value_types(value, f"{prefix}{name}.")
    else:  # a number that may change over the run has the type object
      yield prefix + name, (float, tuple) if config.get_type(name) is object else (type(value),)
