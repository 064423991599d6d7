"""Text to 3D: an object from a prompt."""
from __future__ import annotations

import functools
from collections.abc import Sequence

from sds_jax.io import files
from sds_jax.priors.controlnets import NORMAL
from sds_jax.priors.prior import Prior, Weights
from sds_jax.tasks import priors
from sds_jax.tasks.base import PromptTask
from sds_jax.tasks.object_task import ObjectTask
from sds_jax.training import conditions
from sds_jax.training.program import Program, make_program

LARGER_PRIOR = "configs/text.py:sd15"
"""The configuration with a larger prior, for errors."""


class Text3DTask(PromptTask, ObjectTask):
  """A run of text-to-3D."""

  @property
  def run_name(self) -> str:
    """The prompt as a name of a folder."""
    return files.prompt_slug(self.settings.prompt)

  @property
  def headline(self) -> str:
    """The prompt and the seed."""
    return f"{self.settings.prompt!r} with seed {self.settings.seed}"

  @property
  def always_normals(self) -> bool:
    """Whether a ControlNet reads the normals of the unshaded renders."""
    return self.settings.prior.control_kind == NORMAL

  prompts: Sequence[str] = ()
  """Prompts of `prompts_file`, in place of `prompt`."""

  @functools.cached_property
  def opened(self) -> tuple[Prior, Weights]:
    """The prior and its weights, unread; the prompts have been checked."""
    s = self.settings
    prior, weights = priors.open_prior(s.prior, s.distillation, views=s.camera.group)
    named = ({f"{prompt!r} in config.prompts_file": prompt for prompt in self.prompts} or
             {f"config.prompt={s.prompt!r}": s.prompt})
    priors.check_prompts(prior, s.prior, s.distillation, s.negative_prompt, named, LARGER_PRIOR)
    return prior, weights

  def program(self, prior: Prior) -> Program:
    """Returns the functions of the run."""
    return make_program(self.settings, self.stages, functools.partial(self.terms, prior), prior,
                        lambda: self.embed(prior), self.sheets(prior))

  def embed(self, prior: Prior, prompt: str | None = None) -> conditions.Text:
    """Embeds a prompt with view words and the texts of the estimator.

    Without `prompt` the prompt of the settings is embedded.
    """
    s = self.settings
    return conditions.embed_prompts(prior, s.distillation, s.negative_prompt, s.prompt if prompt is None else prompt)
