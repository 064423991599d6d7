"""The command line as a function: forms of flags, names before all else, and one execution of the user's file."""
import json

import pytest
from absl import flags as absl_flags

from sds_jax import schema, settings
from sds_jax.commands import flags
from sds_jax.commands.flags import UsageError, parse

COUNTING = """
from pathlib import Path
from sds_jax import settings
COUNTER = Path({counter!r})
def get_config(words="none"):
  COUNTER.write_text(COUNTER.read_text() + words + ";")
  config = settings.defaults("text3d")
  config.prompt = "a blue cone"
  return config
COUNTER.write_text(COUNTER.read_text() + "executed;")
"""


@pytest.fixture(autouse=True)
def restored(monkeypatch):
  """No traceback mode; absl's own flags as they were."""
  monkeypatch.delenv("SDS_JAX_TRACEBACK", raising=False)
  yield
  absl_flags.FLAGS.unparse_flags()


@pytest.fixture
def counter(tmp_path):
  path = tmp_path / "counter"
  path.write_text("")
  return path


@pytest.fixture
def file(tmp_path, counter):
  path = tmp_path / "mine.py"
  path.write_text(COUNTING.format(counter=str(counter)))
  return str(path)


def run(*arguments):
  return parse(["run.py", *arguments])


@pytest.mark.parametrize("form", [("--config={}",), ("--config", "{}"), ("-config={}",), ("-config", "{}")])
def test_the_file_is_executed_once(file, counter, form):
  arguments = run(*(part.format(f"{file}:sd15,a:b") for part in form), "--config.seed=3", "--config.camera.up_std=0")
  assert counter.read_text() == "executed;sd15,a:b;"
  assert arguments.config.prompt == "a blue cone" and arguments.config.seed == 3
  assert arguments.overrides == {"seed": 3, "camera.up_std": 0.0}
  assert settings.validate(arguments.config).camera.up_std == 0.0


def test_flags_and_their_defaults(file):
  arguments = run(f"--config={file}", "--config.prompt", "a red cube", "--workdir", "a folder", "--process_id=1",
                  "--num_processes=2", "--coordinator=host:1", "--distributed")
  assert arguments.config.prompt == "a red cube" and arguments.workdir == "a folder" and arguments.distributed
  assert (arguments.coordinator, arguments.num_processes, arguments.process_id) == ("host:1", 2, 1)
  assert arguments.mode == "train" and not arguments.verbose
  assert run().config is None and run("--mode=render").mode == "render" and run("--verbosity=0").verbose


def test_a_flagfile(file, tmp_path):
  (tmp_path / "flags").write_text(f"--config={file}\n# a comment\n--config.seed=4\n--config.loss.sds=2\n")
  for form in ([f"--flagfile={tmp_path / 'flags'}"], ["--flagfile", str(tmp_path / "flags")]):
    arguments = run("--config.prompt", "a red cube", *form)
    assert arguments.overrides == {"prompt": "a red cube", "seed": 4, "loss.sds": 2}


@pytest.mark.parametrize("value, expected", [
  ("0", 0.0), ("2.5", 2.5), ("(2.5,)", 2.5), ("((0, .98), (.5, .5))", ((0, 0.98), (0.5, 0.5))),
  ("[[0, 1], [1, 0]]", ((0, 1), (1, 0)))])
@pytest.mark.parametrize("apart", [False, True])
def test_scheduled_numbers(file, value, expected, apart):
  form = ["--config.loss.sds", value] if apart else [f"--config.loss.sds={value}"]
  assert settings.validate(run(f"--config={file}", *form, "--config.seed=1").config).loss.sds == expected


def test_open_values_and_numbers_below_zero(file):
  arguments = run(f"--config={file}", "--config.distillation.guidance_scale", "-1.5", "--config.distillation.t_max",
                  "auto")
  d = settings.validate(arguments.config).distillation
  assert (d.guidance_scale, d.t_max) == (-1.5, 0.98)


def test_a_tuple_by_parts(file):
  assert run(f"--config={file}", "--config.camera.distance=2", "--config.camera.distance=3").overrides == {
    "camera.distance": (2, 3)}
  assert run(f"--config={file}", "--config.camera.distance=(2, 3)").overrides == {"camera.distance": (2, 3)}


def test_booleans(file):
  overrides = run(f"--config={file}", "--noconfig.export.mesh", "--config.camera.stratified=false").overrides
  assert overrides == {"export.mesh": False, "camera.stratified": False}


def test_the_last_of_two_files_counts(file, tmp_path):
  assert run("--config=no/such/file.py", f"--config={file}").config.prompt == "a blue cone"


def test_overrides_of_a_stored_run_without_a_file(tmp_path):
  stored = schema.to_dict(settings.TREES["image2d"]())
  (tmp_path / "config.json").write_text(json.dumps(dict(config=stored)))
  arguments = run("--mode=export", f"--workdir={tmp_path}", "--config.generator.size=32")
  assert arguments.config is None and arguments.overrides == {"generator.size": 32}
  with pytest.raises(settings.ConfigError, match="config.camera is not a setting"):
    run("--mode=export", f"--workdir={tmp_path}", "--config.camera=1")


@pytest.mark.parametrize("arguments, error, parts", [
  (["--config.promt=a red cube"], settings.ConfigError, ("config.promt is not a setting", "config.prompt?")),
  (["--config.promt", "a red cube"], settings.ConfigError, ("config.promt is not a setting",)),
  (["--config.render.heigth=8"], settings.ConfigError, ("config.render.heigth", "config.render.height?")),
  (["--noconfig.zzz"], settings.ConfigError, ("config.zzz is not a setting", "known here", "prompt")),
  (["--config.camera.distance[0]=1"], settings.ConfigError, ("camera.distance[0] is not a setting",)),
  (["--config.seed.x=1"], settings.ConfigError, ("config.seed has no settings inside",)),
  (["--config.seed=one"], UsageError, ("seed", "one", "sds_jax/settings")),
  (["--config.training.steps=1.5"], UsageError, ("steps", "1.5")),
  (["--config.field=mlp"], settings.ConfigError, ("config.field='mlp'", "group of settings")),
  (["--config.field.name=mlp", "--config.field={}"], settings.ConfigError,
   ("config.field='{}' is not legal", "group of settings", "field.name")),
  (["--config.field", "{}"], settings.ConfigError, ("config.field is a group of settings",)),
  (["--" + "x" * 5000], UsageError, ("is no flag", "xxx...")),
  (["--" + "x" * 5000 + "=1"], UsageError, ("is no flag",)),
  (["x" * 5000], UsageError, ("unexpected argument 'xxx", "...")),
  (["--config=" + "x" * 5000], UsageError, ("there is no file", "configs/text.py")),
  (["--wrkdir=x"], UsageError, ("wrkdir", "workdir")),
  (["--mode=paint"], UsageError, ("--mode=paint is not legal", "train, export, render, evaluate")),
  (["--config.prompt=a", "red", "cube"], UsageError, ("unexpected argument 'red'", "quotes")),
  (["--flagfile=/nowhere"], UsageError, ("/nowhere",)),
  (["--process_id=x"], UsageError, ("process_id", "x")),
  (["--config.distillation.estimator=no_such_module:X"], settings.ConfigError, ("no_such_module:X", "is not legal"))])
def test_mistakes(file, arguments, error, parts):
  with pytest.raises(error) as caught:
    run(f"--config={file}", *arguments)
  assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("arguments, parts", [
  (["--config.lr=0.1"], ("config.lr is not a setting", "config.optimizer.learning_rate?")),
  (["--config.steps=60"], ("config.training.steps?",)), (["--config.training.iters=60"], ("config.training.steps?",)),
  (["--config.cfg-scale=7"], ("config.distillation.guidance_scale?",)),
  (["--config.train.batch_size=7"], ("config.training.views?",)),
  (["--config.distilation.estimator=vsd"], ("config.distillation.estimator?",)),
  (["--config.export.resolution=7"], ("config.export.mesh_resolution?",)),
  (["--config.image=a.png"], ("config.image is not a setting of this task", "--config=configs/image.py")),
  (["--prompt=a red cube"], ("--prompt is no flag", "--config.prompt?")),
  (["--prompt", "a red cube"], ("--config.prompt?",)), (["--lr=1"], ("--config.optimizer.learning_rate?",)),
  (["--model=sd15"], ("--config.prior.name?",)), (["--output_dir=x"], ("--workdir?",)), (["-o", "x"], ("--workdir?",)),
  (["--image=a.png"], ("--config=configs/image.py --config.image?",)), (["--xyz=1"], ("--help",)),
  (["a purple cone"], ("--config=configs/text.py --config.prompt='a purple cone'",)),
  (["a", "purple", "cone"], ("--config.prompt='a purple cone'",)), (["config.seed=1"], ("--config.seed=1?",)),
  (["steps=5"], ("--config.training.steps=5?",)), (["export"], ("--mode=export?",)),
  (["cat.JPG"], ("--config=configs/image.py --config.image=cat.JPG",)), (["my.py"], ("--config=my.py?",))])
def test_what_was_meant(file, arguments, parts):
  for given in ([f"--config={file}"], []):
    with pytest.raises((UsageError, settings.ConfigError)) as caught:
      run(*given, *arguments)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("argument, legal", [
  ("seed=one", "a whole number from 0"), ("training.steps=abc", "a whole number from 1"),
  ("training.steps=1.5", "a whole number from 1"), ("export.mesh=maybe", "True or False"),
  ("optimizer.learning_rate=fast", "a number above 0"), ("render=1", "config.render is a group of settings")])
def test_a_wrong_type_names_what_is_legal(file, argument, legal):
  expected = f"config.{argument.split('=')[0]}='.*' is not legal: .*{legal}"
  with pytest.raises((UsageError, settings.ConfigError), match=expected):
    run(f"--config={file}", f"--config.{argument}")


@pytest.mark.parametrize("name", ["txt", "imagee", "nowhere.py", "configs/tex.py", "a purple cone"])
def test_a_missing_file_says_which_there_are(name):
  with pytest.raises(UsageError, match="configs/text.py .*configs/image.py .*configs/image2d.py .*--config.prompt"):
    run(f"--config={name}")


def test_home_in_the_names_of_files(file, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "flags").write_text("--config=~/mine.py\n--config.seed=4\n")
  assert run("--flagfile=~/flags").overrides == {"seed": 4}
  with pytest.raises(settings.ConfigError, match="begins with ~nobody-here"):
    run("--config=~nobody-here/mine.py")


def test_names_are_checked_before_values(file):
  with pytest.raises(settings.ConfigError, match="config.promt"):
    run(f"--config={file}", "--config.seed=one", "--mode=paint", "--config.promt=x")


@pytest.mark.parametrize("source, parts", [
  ("raise RuntimeError('out of luck')", ("RuntimeError: out of luck", "line 1 of")),
  ("def get_config():\n  return 1 / 0", ("ZeroDivisionError: division by zero", "line 2 of")),
  ("def get_config(", ("SyntaxError",)), ("get_config = 3", ("no function get_config",)),
  ("def get_config():\n  pass", ("get_config returns NoneType; it must return a ConfigDict",)),
  ("def get_config(): return dict()", ("get_config returns dict",))])
def test_a_file_that_does_not_work(tmp_path, source, parts):
  (tmp_path / "mine.py").write_text(source)
  with pytest.raises(UsageError) as caught:
    run(f"--config={tmp_path / 'mine.py'}")
  assert all(part in str(caught.value) for part in (*parts, "--config=")), caught.value


@pytest.mark.parametrize("name", ["configs/none.py", "", ".", "a\0b", "none.py:words"])
def test_no_file(name):
  with pytest.raises(UsageError, match="there is no file"):
    run(f"--config={name}")
  with pytest.raises(UsageError, match="--config has no value"):
    run("--config")


def test_the_files_own_error_where_it_is_asked_for(tmp_path, monkeypatch):
  monkeypatch.setenv("SDS_JAX_TRACEBACK", "1")
  (tmp_path / "mine.py").write_text("raise RuntimeError('out of luck')")
  with pytest.raises(RuntimeError, match="out of luck"):
    run(f"--config={tmp_path / 'mine.py'}")


def test_the_settings_own_error_comes_first(tmp_path):
  (tmp_path / "mine.py").write_text("from sds_jax.settings.recipes import text3d\n"
                                    "def get_config(words):\n"
                                    "  try:\n    return text3d.from_words(words)\n"
                                    "  except ValueError:\n    raise RuntimeError('something else')")
  with pytest.raises(settings.ConfigError, match="'imagen' is neither a recipe"):
    run(f"--config={tmp_path / 'mine.py'}:imagen")


def test_an_estimator_of_the_users_own(file, tmp_path, monkeypatch):
  """Its options are flags at once."""
  (tmp_path / "own_estimator_of_a_flag.py").write_text("""
import dataclasses
from sds_jax import schema
from sds_jax.diffusion.estimators import Estimator
@dataclasses.dataclass(frozen=True)
class Options:
  alpha: float = schema.setting(0.5, schema.number(0.0, 1.0), "a share")
def fn(denoise_fn, params, schedule, x, t, eps, cond, keys, *, alpha):
  return alpha * eps, dict(eps_hat=eps, x0_hat=x)
MINE = Estimator("mine", fn, options=Options)
""")
  monkeypatch.syspath_prepend(tmp_path)
  name = "own_estimator_of_a_flag:MINE"
  given = f"--config.distillation.estimator={name}"
  arguments = run(f"--config={file}", "--config.distillation.mine.alpha=0.25", given)
  d = settings.validate(arguments.config).distillation
  assert d.estimator == name and d.mine.alpha == 0.25
  with pytest.raises(settings.ConfigError, match="did you mean config.distillation.mine.alpha?"):
    run(f"--config={file}", given, "--config.distillation.mine.alhpa=1")


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help(flag, capsys):
  with pytest.raises(SystemExit) as stop:
    run(flag)
  out = capsys.readouterr().out
  assert stop.value.code == 0 and "--config=FILE" in out and "--mode=MODE" in out and "optimizer.learning_rate" in out
  assert "alsologtostderr" not in out and ("export.num_samples" in out) == (flag == "--helpfull")


def test_help_of_another_task(capsys):
  with pytest.raises(SystemExit):
    run("--config=image", "--help")
  assert "--config.image=picture.png" in capsys.readouterr().out


def test_parsing_leaves_nothing_behind():
  before = set(absl_flags.FLAGS)
  run("--workdir=a", "--config.seed=1")
  assert set(absl_flags.FLAGS) == before and absl_flags.FLAGS.is_parsed()


def test_examples(without_example):
  assert set(without_example("sds_jax.commands.flags")) <= {"Arguments", "parse", "joined"}
  assert flags.MODES[0] == "train"
