"""What a user gets wrong on the command line: status 2 and one line on stderr that says how to mend it."""
import json
import os
import shutil

import pytest

from sds_jax import schema, settings
from sds_jax.io import lock
from sds_jax.priors import sources
from sds_jax.priors.loading import hub

TEXT = "--config=configs/text.py"
ONE = "--config.parallel.devices=1"  # of the eight that tests have
UNET, CLIP = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def one_line(result):
  """The message of a mistake; fails unless there is exactly one line, without a traceback."""
  status, _, err = result
  assert status == 2, result
  assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err
  return err


@pytest.mark.parametrize("arguments, parts", [
  ((), ("no settings given", "--config=configs/text.py")),
  (("--config=configs/none.py",), ("configs/none.py",)),
  ((TEXT, "--config.promt=a red cube"), ("config.promt is not a setting", "did you mean config.prompt?")),
  ((TEXT, "--config.render.heigth=8"), ("config.render.heigth", "config.render.height?")),
  ((TEXT, "--config.zzz=1"), ("config.zzz is not a setting", "known here", "prompt")),
  ((TEXT, "--config.seed=one"), ("seed", "one")),
  ((TEXT, "--config.camera.distance=near"), ("distance", "near")),
  ((TEXT, "--config.training.steps=1.5"), ("steps", "1.5")),
  ((TEXT, "--config.render.height=-64"), ("config.render.height=-64", "from 8 to 1024")),
  ((TEXT, "--config.optimizer.learning_rate=nan"), ("config.optimizer.learning_rate=nan", "above 0")),
  ((TEXT, "--config.distillation.estimator=vsd2"), ("config.distillation.estimator='vsd2'", "one of sds")),
  ((TEXT, "--config.distillation.t_min=(0.9,)", "--config.distillation.t_max=(0.1,)"), ("t_min", "t_max", "below")),
  ((TEXT, "--config.prompt="), ("config.prompt=''", "1 to 10,000 characters")),
  ((TEXT, "--mode=paint"), ("--mode=paint", "train, export, render, evaluate")),
  ((TEXT, "--mode=export"), ("--mode=export needs the folder of a run", "--workdir=")),
  ((TEXT, "--mode=render", "--workdir=/nowhere"), ("--workdir=/nowhere is not the folder of a run",)),
  ((TEXT, "--wrkdir=x"), ("wrkdir",)),
  ((TEXT, "--config.prompt=a", "red", "cube"), ("unexpected argument 'red'", "quotes")),
  ((TEXT, "--config.field=mlp"), ("field", "mlp")),
  ((TEXT, "--config.negative_prompt=\ud800"), ("config.negative_prompt=", "lone surrogate")),
  ((TEXT, ONE, "--config.prior.name=\x1b[31m\u202ex"), (r"\x1b[31m\u202ex",)),
  ((TEXT, "--config.loss.sds=(1" + "0" * 400 + ",)"), ("config.loss.sds=", "values of at least 0")),
  ((TEXT, "--flagfile=/nowhere"), ("/nowhere",)),
  ((TEXT, "--workdir=a\0b"), ("cannot be written to", "--workdir=")),
  ((TEXT, "--workdir=\udcff"), ("cannot be written to", "--workdir=")),
  ((TEXT, ONE, "--workdir=/proc/none"), ("/proc/none cannot be written to", "--workdir=")),
])
def test_settings_and_flags(command, arguments, parts):
  message = one_line(command(*arguments))
  assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["sd15", "sd21-base", "sd21", "if", "owner/name"])
def test_published_priors_without_a_connection(command, tmp_path, monkeypatch, name):
  monkeypatch.setattr(sources, "default_hub", lambda: offline_hub(tmp_path))
  message = one_line(command(f"{TEXT}:{name}", ONE, f"--workdir={tmp_path / 'run'}"))
  assert f"the prior '{name}' can't be had" in message and "can't be reached" in message
  assert "--config.prior.path=PATH" in message and "hf download" in message
  assert not (tmp_path / "run").exists()


def offline_hub(folder):
  def unreachable(repo, *args):
    raise hub.explain(ConnectionError(), repo)

  return hub.Hub(folder / "hub", unreachable, unreachable)


def test_unknown_prior(command, tmp_path):
  message = one_line(command(f"{TEXT}:imagen", f"--workdir={tmp_path}"))
  for part in ("'imagen' is neither a recipe", "dreamfusion, dreamfusionacc, mvdream, threestudio_sd, threestudio_if",
               "shapeworld", "sd15", "sd21-base", "if-xl", "owner/name"):
    assert part in message, message
  assert "zero123" not in message  # which is told no words
  message = one_line(command(TEXT, ONE, f"--config.prior.path={tmp_path}/none", f"--workdir={tmp_path}"))
  assert f"{tmp_path}/none" in message


@pytest.mark.parametrize("prompt, parts", [
  ("a hamburger", ("'hamburger'", "red, green", "sphere, cube", "sd15", "--config.prior.allow_unknown_words=True")),
  ("a red and blue cube", ("'and'", "allow_unknown_words")),
  ("cube red", ("a colour and a shape", "allow_unknown_words")),
  ("a red mug on top of a blue cube", ("mug cannot be stacked", "allow_unknown_words")),
])
def test_prompts_beyond_the_prior(command, tmp_path, tiny_flags, prompt, parts):
  message = one_line(command(TEXT, *tiny_flags, f"--config.prompt={prompt}", f"--workdir={tmp_path / 'run'}"))
  assert repr(prompt) in message and all(part in message for part in parts), message
  assert "small demonstration" in message and "real model" in message
  assert not (tmp_path / "run").exists()


def test_view_words_beyond_the_prior(command, tiny_prior, tiny_flags, tmp_path):
  shutil.copytree(tiny_prior, tmp_path / "prior")
  index = json.loads((tmp_path / "prior" / "model_index.json").read_text())
  del index["captions"]  # with a grammar of captions the words of views are known
  (tmp_path / "prior" / "model_index.json").write_text(json.dumps(index | dict(vocabulary=["a", "red", "cube"])))
  flags = [*tiny_flags, f"--config.prior.path={tmp_path / 'prior'}", f"--workdir={tmp_path / 'run'}"]
  message = one_line(command(TEXT, *flags))
  assert "'front'" in message and "--config.distillation.view_words=none" in message, message


def cut(path):
  path.write_bytes(path.read_bytes()[:-100])


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def scramble(path):
  path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


@pytest.mark.parametrize("damage, parts", [
  (lambda folder: cut(folder / UNET), ("unet", "damaged or truncated")),
  (lambda folder: scramble(folder / CLIP), ("text_encoder", "damaged or truncated")),
  (lambda folder: (folder / UNET).rename(folder / "unet" / "model.safetensors"),
   ("unet", "has no weights", "diffusion_pytorch_model.safetensors")),
  (lambda folder: (folder / UNET).write_bytes(b""), ("is empty",)),
  (lambda folder: shutil.copy(folder / UNET, folder / CLIP), ("text_encoder", "missing", "unexpected")),
  (lambda folder: shutil.rmtree(folder / "unet"), ("unet does not exist",)),
  (lambda folder: (folder / "model_index.json").unlink(), ("model_index.json does not exist",)),
  (lambda folder: (folder / "unet" / "config.json").write_text("{"), ("config.json is not JSON",)),
  (lambda folder: (folder / "tokenizer" / "merges.txt").unlink(), ("merges.txt does not exist",)),
  (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), ("does not exist",)),
  (lambda folder: edit(folder / "unet" / "config.json", down_block_types=None), ("down_block_types=None", "a list")),
  (lambda folder: edit(folder / "unet" / "config.json", block_out_channels=8), ("block_out_channels=8", "a list")),
  (lambda folder: edit(folder / "unet" / "config.json", class_embed_type="timestep"),
   ("class_embedding", "wrong shape")),
  (lambda folder: edit(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=None),
   ("num_train_timesteps=None",)),
  (lambda folder: edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length="long"), ("'long' is no",)),
  (lambda folder: edit(folder / "tokenizer" / "special_tokens_map.json", eos_token={}),
   ("eos_token=None is no token",)),
], ids=["cut off", "corrupt", "renamed", "empty", "swapped", "no net", "no index", "no JSON", "no merges", "no betas",
        "null", "number", "kind", "no steps", "no length", "no token"])
def test_damaged_priors(command, tiny_prior, tiny_flags, tmp_path, damage, parts):
  shutil.copytree(tiny_prior, tmp_path / "prior")
  damage(tmp_path / "prior")
  path, workdir = f"--config.prior.path={tmp_path / 'prior'}", f"--workdir={tmp_path / 'run'}"
  message = one_line(command(TEXT, *tiny_flags, path, workdir))
  assert str(tmp_path / "prior") in message and all(part in message for part in parts), message
  assert not (tmp_path / "run").exists() or os.listdir(tmp_path / "run") == [".lock"]


@pytest.mark.parametrize("mode", ["train", "export", "render", "evaluate"])
def test_two_runs_in_one_folder(command, tiny_flags, tiny_config, tmp_path, mode):
  folder = tmp_path / "run"
  folder.mkdir()
  stored = schema.to_dict(settings.validate(tiny_config()))
  (folder / "config.json").write_text(json.dumps(dict(config=stored)))
  with lock.hold(folder):
    message = one_line(command(*([TEXT, *tiny_flags] if mode == "train" else []), f"--mode={mode}",
                               f"--workdir={folder}"))
  for part in (f"{folder} is in use", f"process {os.getpid()} on ", "wait for it to end", "another --workdir"):
    assert part in message, message
  assert sorted(os.listdir(folder)) == [".lock", "config.json"]
