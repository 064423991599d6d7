"""The tasks: text to 3D, image to 3D, images, and many scenes of a file of prompts."""
from __future__ import annotations

from typing import Any

from sds_jax.tasks.image2d import Image2DTask
from sds_jax.tasks.image3d import Image3DTask
from sds_jax.tasks.scenes import ScenesTask
from sds_jax.tasks.task import Task
from sds_jax.tasks.text3d import Text3DTask

TASKS = {"text3d": Text3DTask, "image3d": Image3DTask, "image2d": Image2DTask}
"""Value of the setting `job` -> class of the task."""


def of(settings: Any) -> Task:
  """Returns the task of a validated tree.

  A file of prompts makes text-to-3D a task of many scenes.
  """
  return ScenesTask(settings) if getattr(settings, "prompts_file", "") else TASKS[settings.job](settings)
