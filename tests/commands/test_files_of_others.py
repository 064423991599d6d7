"""A run changes nothing that no run of its folder has written, and refuses in one line before work starts."""
import json
import os

import pytest

from sds_jax import schema, settings
from sds_jax.drills import hostile_folders
from sds_jax.io import files, run_files
from sds_jax.shapeworld import sample_photos

RUN = "at/run"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
  return sample_photos.write_photo(sample_photos.draw_truth(0, caption="a red cube"), 32,
                                   tmp_path_factory.mktemp("photos") / "photo.png")


@pytest.fixture
def surroundings(tmp_path, photo):
  """A folder with the folder `at/run`, and files, folders and a photo beside it."""
  for name in ("at/run", "at/other/progress", "at/folder"):
    (tmp_path / name).mkdir(parents=True)
  for name in ("victim.txt", "at/victim.txt", "at/other/progress/000100.png", "at/folder/notes"):
    (tmp_path / name).write_text(f"precious {name}")
  (tmp_path / "at" / "photo.png").write_bytes(photo.read_bytes())
  return tmp_path


@pytest.fixture(scope="module")
def flags_of(tiny_flags, tiny_view_prior, tiny_prior):
  """{job: arguments}."""
  small = [flag for flag in tiny_flags if not flag.startswith(("--config.prompt=", "--config.prior.path="))]
  images = [f"--config.prior.path={tiny_prior}", "--config.generator.size=16", "--config.training.views=2",
            "--config.training.steps=2", "--config.optimizer.warmup_steps=0", "--config.parallel.devices=1"]
  return {"text": ["--config=text", "--config.prompt=a red cube", f"--config.prior.path={tiny_prior}", *small],
          "image": [f"--config=image:{tiny_view_prior}", *small], "image2d": ["--config=image2d:fourier", *images]}


def refused(command, surroundings, *arguments, workdir=None):
  before = hostile_folders.digest(surroundings)
  status, out, err = command(*arguments, f"--workdir={workdir or surroundings / RUN}")
  assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and out == "", (out, err)
  assert hostile_folders.digest(surroundings) == before
  return err


def file(text="precious"):
  return lambda path: path.write_text(text)


def link(target):
  return lambda path: path.symlink_to(target)


def folder_of_another_run(path):
  path.mkdir()
  (path / "config.json").write_text("{}")


def hard_link(path):
  os.link(path.parents[len(path.parts) - path.parts.index("run")] / "victim.txt", path)


def inside(name):
  def make(path):
    path.mkdir()
    (path / name).write_text("precious")

  return make


MEMBERS = [
    ("text", "config.json", file('{"model_type": "clip"}')), ("text", "config.json", file('{"config": {"seed": 0}}')),
    ("text", "metrics.jsonl", file("")), ("text", "timings.json", link("../victim.txt")),
    ("text", "report.html", link("../nothing")), ("text", "renders.png", os.mkfifo), ("text", "mesh.glb", hard_link),
    ("text", "mesh.obj", lambda path: path.mkdir()), ("text", "Turntable.MP4", file()), ("text", "scores.json", file()),
    ("text", "progress", file()), ("text", "progress", link("../other/progress")),
    ("text", "progress", link("../none")),
    ("text", "progress", inside("000002.png")), ("text", "progress", inside("guidance_000002.png")),
    ("text", "checkpoints", link("../folder")), ("text", "checkpoints", os.mkfifo),
    ("text", "checkpoints", lambda path: (path / "4").mkdir(parents=True)),
    ("text", "checkpoints", lambda path: (path / "4.orbax-checkpoint-tmp").mkdir(parents=True)),
    ("text", "checkpoints", lambda path: (path / ".deleted-4").mkdir(parents=True)),
    ("text", ".lock", link("../nothing")), ("text", ".lock", link("../victim.txt")), ("text", ".lock", os.mkfifo),
    ("text", ".lock", file("4711\n")), ("text", ".lock", lambda path: path.mkdir()), ("text", ".lock", hard_link),
    ("text", "files.jsonl", file()), ("text", "files.jsonl", link("../victim.txt")), ("text", "files.jsonl", os.mkfifo),
    ("image", "input.png", file()), ("image", "original.png", file()), ("image", "Original.PNG", file()),
    ("image", "picture.json", file('{"original": "../victim.txt"}')), ("image", "reference.png", link("../none")),
    ("image2d", "image.png", file()), ("image2d", "image_large.png", link("image_large.png")),
    ("image2d", "IMAGE.png", file())]


@pytest.mark.parametrize("job, name, make", MEMBERS, ids=[f"{job} {name} {i}" for i, (job, name, _) in
                                                          enumerate(MEMBERS)])
def test_what_is_in_the_way(command, surroundings, flags_of, job, name, make):
  path = surroundings / RUN / name
  make(path)
  extra = [f"--config.image={surroundings / 'at' / 'photo.png'}"] if job == "image" else []
  error = refused(command, surroundings, *flags_of[job], *extra)
  assert f"{RUN}/{name}" in error and "is in the way" in error and "another --workdir" in error


def test_particles_have_folders_of_their_own(command, surroundings, flags_of):
  (surroundings / RUN / "particle_1").mkdir()
  (surroundings / RUN / "particle_1" / "report.html").write_text("precious")
  two = ["--config.training.particles=2", "--config.training.views=2"]
  assert "particle_1/report.html" in refused(command, surroundings, *flags_of["text"], *two)


@pytest.mark.parametrize("make", [folder_of_another_run, link("../folder"), file()])
def test_scenes_do_not_take_the_folders_of_other_runs(command, surroundings, flags_of, make):
  (surroundings / "prompts.txt").write_text("a blue cone\na red cube\n")
  make(surroundings / RUN / "a-red-cube-0")
  arguments = [*flags_of["text"], f"--config.prompts_file={surroundings / 'prompts.txt'}"]
  assert "a-red-cube-0" in refused(command, surroundings, *arguments)


@pytest.mark.parametrize("name", ["input.png", "original.png", "reference.png"])
def test_the_photo_is_never_overwritten(command, surroundings, flags_of, photo, name):
  """Also where it lies in the folder of the run, by another name, and where a run has written it."""
  path = surroundings / RUN / name
  path.write_bytes(photo.read_bytes())
  (surroundings / "at" / "link.png").symlink_to(path)
  for given in (path, surroundings / "at" / "run" / ".." / "run" / name, surroundings / "at" / "link.png"):
    assert name in refused(command, surroundings, *flags_of["image"], f"--config.image={given}")
  if name == "original.png":
    return  # as a run's own copy of its photo, which it leaves as it is
  with run_files.recording(surroundings / RUN) as record:
    record.add(record.folder / name, run_files.file_digest(path))
  error = refused(command, surroundings, *flags_of["image"], f"--config.image={path}", "--config.resume=never")
  assert f"config.image='{path}'" in error and "copy it" in error


def test_a_run_does_not_edit_itself(command, surroundings, tiny_config, flags_of):
  """Checks that the edited run, whose checkpoints are the input, is not started anew."""
  folder = surroundings / RUN
  with run_files.recording(folder):
    files.write_json(dict(config=schema.to_dict(settings.validate(tiny_config()))), folder / "config.json")
  arguments = [*flags_of["text"], f"--config.distillation.source={folder}", "--config.distillation.estimator=dds"]
  assert "config.distillation.source" in refused(command, surroundings, *arguments, "--config.resume=never")


@pytest.mark.parametrize("mode", ["export", "render", "evaluate"])
@pytest.mark.parametrize("name", ["report.html", "renders.png", "turntable.mp4"])
def test_modes_of_a_finished_run(command, surroundings, tiny_config, mode, name):
  folder = surroundings / RUN
  stored = json.dumps(dict(config=schema.to_dict(settings.validate(tiny_config()))))
  (folder / "config.json").write_text(stored)
  with run_files.recording(folder) as record:
    record.add(record.folder / "config.json", run_files.digest_of(stored.encode()))
  (folder / name).symlink_to("../victim.txt")
  before = (surroundings / "at" / "victim.txt").read_text()
  status, _, err = command(f"--mode={mode}", f"--workdir={folder}")
  assert status == 2 and f"{name} is in the way" in err and err.count("\n") == 1, err
  assert (surroundings / "at" / "victim.txt").read_text() == before and (folder / name).is_symlink()


@pytest.mark.parametrize("workdir", ["~nobody-here/x", "~nobody-here"])
def test_a_home_of_nobody_makes_no_folder(command, surroundings, flags_of, workdir, monkeypatch):
  assert "no home folder is known" in refused(command, surroundings, *flags_of["text"], workdir=workdir)


@pytest.mark.parametrize("setting", ["prompts_file", "distillation.source", "prior.path", "workdir"])
def test_a_home_of_nobody_in_settings(command, surroundings, flags_of, setting):
  assert "~nobody-here" in refused(command, surroundings, *flags_of["text"], f"--config.{setting}=~nobody-here/x")


def test_home(monkeypatch, tmp_path, tiny_config):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "p.txt").write_text("a red cube\n")
  read = settings.validate(tiny_config({"prompts_file": "~/p.txt", "workdir": "~/runs/x"}))
  assert read.prompts_file == str(tmp_path / "p.txt") and read.workdir == str(tmp_path / "runs" / "x")
