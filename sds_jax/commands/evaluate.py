"""The command `evaluate`: score a finished object against its exact scene."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from sds_jax.commands.per_scene import per_scene
from sds_jax.evaluation import image_scores, scores as scores_lib
from sds_jax.io import files
from sds_jax.schema import ConfigError
from sds_jax.shapeworld import captions, sample_photos
from sds_jax.tasks import photo as photo_lib
from sds_jax.tasks.image3d import Image3DTask
from sds_jax.tasks.outputs import print_done
from sds_jax.tasks.task import Task
from sds_jax.tasks.text3d import Text3DTask


@per_scene
def evaluate(task: Task, folder: Path, started: float) -> None:
  """Scores the object of the newest checkpoint, and writes scores.json and all outputs.

  Raises:
    ConfigError: there is no exact scene to compare with.
  """
  if isinstance(task, Image3DTask):
    evaluate_photo(task, folder)
  elif isinstance(task, Text3DTask):
    evaluate_text(task, folder)
  else:
    raise ConfigError(f"--mode=evaluate is for objects (config.job='text3d'), and {folder} holds a run of images "
                      f"(config.job={task.settings.job!r}): an image has no exact scene to be compared with; look at "
                      "image*.png")
  print_done(started, folder / "scores.json")


def evaluate_text(task: Text3DTask, folder: Path) -> None:
  """Scores every object of a run against the scene of its ShapeWorld caption."""
  prompt = task.settings.prompt
  try:
    # Before the state is read, so that a mistake costs no time.
    spec = captions.parse(prompt)
  except captions.CaptionError as error:
    raise ConfigError(f"--mode=evaluate has no ground truth for config.prompt={prompt!r}: {error}") from error
  state = task.restore(folder)
  for place, one in task.objects_in(state, folder):
    scores = scores_lib.score(task.generator, one, spec)
    files.write_json(scores, place / "scores.json")
    # Several objects have a folder each; a single one lies in the folder of the run.
    if place != folder:
      print(f"{place}: silhouette IoU {scores['silhouette_iou']:.3f}")
  task.write(state, folder, files.read_json(folder / "timings.json"))
  print_scores(files.read_json(folder / "scores.json"))


def evaluate_photo(task: Image3DTask, folder: Path) -> None:
  """Scores the object of a run against the scene that its sample photo was rendered from."""
  photo, about = photo_lib.stored_photo(folder)
  # The copy in the folder, since the user's file may have changed or moved.
  original = photo_lib.stored_copy(folder, about, "original")
  truth = original and sample_photos.read_truth(original)
  if truth is None:
    raise ConfigError(f"--mode=evaluate has no ground truth for config.image={task.settings.image!r}: the file is no "
                      "photo of python -m sds_jax.shapeworld.sample_photos, which store the scene that they show")
  state = task.restore(folder)
  scores = image_scores.score(task.generator, task.settings.camera, state, truth, photo, about["azimuth"],
                              about["elevation"])
  files.write_json(scores, folder / "scores.json")
  task.write(state, folder, files.read_json(folder / "timings.json"))
  print_scores(scores)


def print_scores(scores: dict[str, Any]) -> None:
  """Prints a line for each score."""
  print("\n".join(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}"
                  for name, value in scores.items()))
