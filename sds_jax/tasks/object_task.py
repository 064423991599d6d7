"""The common part of text-to-3D and image-to-3D."""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sds_jax import schema
from sds_jax.generators.custom import CustomGenerator, Representation
from sds_jax.generators.field import FieldGenerator
from sds_jax.generators.viewpoints import Viewpoints
from sds_jax.io import files, images
from sds_jax.io.run_files import Layout
from sds_jax.priors.prior import Prior
from sds_jax.settings.generator import FIELD
from sds_jax.settings.image3d import Image3D
from sds_jax.settings.text3d import Text3D
from sds_jax.tasks import objects, outputs
from sds_jax.tasks.base import GeneratorTask
from sds_jax.tasks.outputs import ObjectGenerator, ObjectView, ReportPage
from sds_jax.training import inspect_guidance, workspace
from sds_jax.training.control_images import IMAGES
from sds_jax.training.loop import RunResult
from sds_jax.training.program import SheetsFn
from sds_jax.training.stages import Stage, make_stages
from sds_jax.training.state import TrainState
from sds_jax.training.step import Term
from sds_jax.training.terms.distillation import Distillation


class ObjectTask(GeneratorTask):
  """A run that optimises a 3D object.

  Attributes:
    settings: the validated tree.
    ambient: share of ambient light in outputs that show the shape.
    always_normals: whether unshaded renders have normals, too.
  """
  ambient = 0.5
  always_normals = False

  def __init__(self, settings: Text3D | Image3D):
    """Keeps the settings; generators and renderers are built at their first use."""
    self.settings = settings

  def outputs(self, folder: Path | None = None) -> Layout:
    """Returns the names that the run may write.

    Each particle but the first has a folder.
    """
    del folder
    # Only the names that these settings write: a user's file of another name is in nobody's way.
    export = self.settings.export
    one = {name: None for name in ("renders.png", "report.html", "scores.json", "timings.json",
                                   *(outputs.TURNTABLES if export.turntable else ()),
                                   *(outputs.mesh_names(export) if export.mesh else ()))}
    return {**workspace.LAYOUT, **one, **{f"particle_{n}": one for n in range(1, self.settings.training.particles)}}

  @functools.cached_property
  def generator(self) -> ObjectGenerator:
    """The generator with the size of the first renders.

    Raises:
      ConfigError: the user's representation does not work.
    """
    return self.make_generator(self.settings.render.height)

  def make_generator(self, size: int, as_latent: bool = False) -> ObjectGenerator:
    """Builds the generator; allocates nothing.

    Args:
      size: height and width of the training renders.
      as_latent: whether normals and opacity are the latent.
    """
    s = self.settings
    viewpoints = Viewpoints(objects.camera_distribution(s.camera), s.training.views, s.camera.stratified,
                            s.camera.group)
    background = objects.make_background(s.background)
    if s.generator.name != FIELD:
      return CustomGenerator(self._representation(size), background, viewpoints, size, s.training.particles)
    return FieldGenerator(
        field=objects.make_field(s.field), background=background,
        options=objects.render_options(s.render, s.field.bound), viewpoints=viewpoints,
        lights=objects.light_distribution(s.shading), size=size, occupancy=s.occupancy,
        schedule=objects.field_schedule(s.field), particles=s.training.particles, normals=s.render.normals,
        always_normals=self.always_normals, as_latent=as_latent, mesh=s.export)

  @functools.cached_property
  def _representation(self) -> Callable[[int], Representation]:
    # Kept by size: training and outputs share one object, which may draw or read something as it is made.
    return functools.cache(lambda size: objects.load_custom(self.settings.generator.name, size, self.read_images()))

  def read_images(self) -> dict[str, str]:
    """Returns the optional images of a view that settings read: {image: setting}.

    Settings that are 0 or empty read nothing.
    """
    until, prior = self.settings.distillation.latent_until, self.settings.prior
    read = {"normals": f"config.distillation.latent_until={until!r}"} if until > 0.0 else {}
    if prior.controlnet:
      read[IMAGES[prior.control_kind]] = f"config.prior.controlnet={prior.controlnet!r}"
    return read

  def check(self) -> None:
    """Opens the prior, and checks the prompts and a user's own representation.

    No weights are read.
    """
    super().check()
    _ = self.generator

  @functools.cached_property
  def stages(self) -> tuple[Stage, ...]:
    """The stages of the run, each with its generator."""
    s = self.settings
    return make_stages(s.training.steps, s.render.height, s.render.milestones, s.distillation.latent_until,
                       self.make_generator)

  def distillation_term(self, prior: Prior, stage: Stage) -> Distillation:
    """Returns the term of the main prior."""
    s = self.settings
    return Distillation(stage.generator, prior, s.distillation, s.loss.sds, s.training.views, s.seed, stage.as_latent)

  def terms(self, prior: Prior, stage: Stage) -> list[Term]:
    """Returns the distillation from the prior, and the regularisers."""
    return [self.distillation_term(prior, stage), *objects.regularisers(self.settings.loss)]

  def sheets(self, prior: Prior) -> SheetsFn:
    """Returns the maker of the guidance sheets."""
    terms = [self.distillation_term(prior, stage) for stage in self.stages]
    return functools.partial(inspect_guidance.sheets, self.stages, terms, self.settings.training.steps)

  @functools.cached_property
  def view(self) -> ObjectView:
    """The renderer of the outputs, which compiles at its first image."""
    # The generator of the first stage: outputs have a size of their own.
    return outputs.make_view(self.generator, self.settings.camera, self.settings.export, self.ambient)

  @property
  def title(self) -> str:
    """The prompt of the object."""
    return self.settings.prompt

  def objects_in(self, state: TrainState, folder: Path) -> Sequence[tuple[Path, TrainState]]:
    """Returns (folder, state) of each particle."""
    return list(outputs.each_object(state, self.generator.particles, folder))

  def preview(self, state: TrainState, folder: Path, step: int) -> None:
    """Writes a strip of renders of each object to progress/."""
    rows = [outputs.render_row(self.view, one) for _, one in self.objects_in(state, folder)]
    images.write_png(np.concatenate(rows), folder / "progress" / f"{step:06d}.png")

  def finish(self, result: RunResult, folder: Path, timings: dict[str, float], started: float) -> None:
    """Writes all outputs after the last step."""
    self.write(result.state, folder, timings)
    outputs.print_done(started, folder / "report.html")

  def export(self, state: TrainState, folder: Path, started: float) -> None:
    """Writes all outputs of a restored state."""
    # The report keeps the seconds of the run itself.
    self.write(state, folder, files.read_json(folder / "timings.json"))
    outputs.print_done(started, folder / "report.html")

  def write(self, state: TrainState, folder: Path, timings: dict[str, float]) -> None:
    """Writes all outputs of a state, of each particle into its own folder."""
    self.write_all(state, folder, timings)

  def write_all(self, state: TrainState, folder: Path, timings: dict[str, float],
                comparison: Path | None = None) -> None:
    """Writes the outputs of `write`.

    Args:
      state: of the whole run.
      folder: of the run.
      timings: seconds by part of the run.
      comparison: an image of the photo beside the object, for the report.
    """
    print("writing renders, turntable, mesh and report ...", flush=True)
    page = ReportPage(self.title, schema.to_dict(self.settings), comparison)
    for place, one in self.objects_in(state, folder):
      timings = outputs.write_outputs(self.generator, self.view, one, place, page, dict(timings))
      files.write_json(timings, place / "timings.json")

  def render(self, state: TrainState, folder: Path) -> None:
    """Writes renders and turntable of a restored state, and prints their paths."""
    for place, one in self.objects_in(state, folder):
      print(outputs.write_renders(self.view, one, place))
      print(outputs.write_turntable(self.view, one, place))
