"""The benchmark with published priors, whose networks are tiny here."""
import json
import re
import warnings

import jax
import jax.numpy as jnp
import pytest

from sds_jax.benchmarks import memory, peer, peer_prior, step_draws, table, timing, workload
from sds_jax.benchmarks import step as benchmark
from sds_jax import settings as settings_lib
from sds_jax.priors.loading import checkpoint
from sds_jax.schema import ConfigError
from sds_jax.tasks import Text3DTask

SMALL = {"render.height": 8, "render.width": 8, "render.num_samples": 4, "render.candidates": 8, "field.name": "mlp",
         "field.mlp.hidden": 8, "field.mlp.depth": 1, "field.mlp.num_octaves": 2, "shading.lambertian": 0.0,
         "shading.textureless": 0.0, "occupancy.every": 0, "prior.dtype": "float32"}


@pytest.fixture
def command(tmp_path):
  """The command line for the tiny `sd15`, with even smaller renders."""
  return ["step", "--prior=sd15", "--random_weights", f"--json={tmp_path / 'record.json'}", "--steps=1", "--warmup=0",
          "--at=0", "--repeats=1", "--rounds=1", "--matmul=64", *(f"--config.{name}={v}" for name, v in SMALL.items())]


def test_settings_are_those_of_the_prior(command):
  settings = benchmark.read_settings(benchmark.parse(command))
  assert settings.prior.random_weights and settings.prior.name == "sd15" and settings.camera.fov_deg == (40.0, 70.0)
  assert settings.distillation.guidance_scale == 100.0 and settings.training.views == 1  # of configs/text.py
  separated = benchmark.read_settings(benchmark.parse(["step", "--prior", "if-m", "--random_weights"]))
  assert separated.prior.name == "if-m" and separated.camera.fov_deg == (40.0, 70.0)
  assert benchmark.read_settings(benchmark.parse(["step"])).prior.name == "shapeworld"
  with pytest.raises(ConfigError, match="config.prior.random_weights=True needs the name of a published"):
    benchmark.read_settings(benchmark.parse(["step", "--prior=shapeworld", "--random_weights"]))


def test_command(command, tiny_published, monkeypatch, tmp_path, capsys):
  """Checks the record for a latent prior; nothing is compiled here, since test_step compiles."""
  compiled = jax.jit(lambda: 0).lower().compile()
  times = dict(cold_s=2.0, cached_s=1.0, cache_hits=1)
  monkeypatch.setattr(workload, "compile_twice", lambda work, state: (compiled, times))
  monkeypatch.setattr(workload, "run_steps", lambda work, compiled, state, steps: (
    state, [dict(seconds=0.5, shaded=False)] * steps))
  monkeypatch.setattr(timing, "repeat", lambda function, *args, repeats: [0.25] * repeats)
  assert benchmark.main(command) == 0
  printed, record = capsys.readouterr().out, json.loads((tmp_path / "record.json").read_text())
  assert "prior: sd15 (random weights)" in printed and record["prior_source"]["folder"] == "random weights"
  measured = record["parts"]
  assert table.step_flops(measured, "albedo") == sum(measured[name]["flops"] for name in (
    "render albedo, forward and backward", "prior", "encoder, forward and backward"))
  assert measured["encoder, forward and backward"]["flops"] > 1e6 and measured["prior"]["flops"] > 1e6
  assert record["matmul"]["dtype"] == "float32" and record["peak_device_bytes"] is None
  sizes = record["arguments_memory"]
  for name in ("unet", "vae"):
    model = checkpoint.COMPONENTS[name].network.from_config(tiny_published["sd15"][name])
    parameters = sum(leaf.size for leaf in checkpoint.abstract_params(model).values())
    assert sizes[f"weights of the {name}"] == 4 * parameters
  assert sizes["text"] == 4 * 77 * 8 * 5  # four views and the null text
  assert "encoder, forward and backward" in printed and "of the arguments: weights of the unet" in printed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_only(command, tiny_published, monkeypatch, capsys, dtype):
  """Allocates and runs nothing, renders rays as on an accelerator, and reports the float32 copies of a CPU."""
  calls = []

  def compile_step(work, state):
    calls.append((work, state))
    return jax.jit(lambda: 0).lower().compile(), 1.5

  monkeypatch.setattr(workload, "compile_step", compile_step)
  monkeypatch.setattr(workload, "run_steps", None)
  assert benchmark.main([*command, "--memory_only", f"--config.prior.dtype={dtype}"]) == 0
  (work, state), printed = calls[0], capsys.readouterr().out
  leaves = jax.tree.leaves((work.prior_params, state))
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves) and work.generator.options.block_points == 2**18
  assert {leaf.dtype for leaf in jax.tree.leaves(work.prior_params)} == {jnp.dtype(dtype)}
  assert ("an upper bound for accelerators" in printed) == (dtype == "bfloat16")
  assert "weights of the vae" in printed and "no weights were allocated" in printed


def test_total():
  plan = dict(argument=100, output=30, temp=50, alias=25, generated_code=1)
  assert memory.total(plan) == 156


@pytest.fixture(scope="module")
def torch_prior():
  """The module `benchmarks.torch_prior`, imported without the warnings of torch and diffusers."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for module in ("torch", "diffusers"):
      pytest.importorskip(module, reason="needs sds_jax[parity]", exc_type=ImportError)
    from sds_jax.benchmarks import torch_prior as module
    return module


class InProcess:
  """Replaces `peer.Process`, in this process."""

  def __init__(self, module, content, threads):
    from sds_jax.benchmarks import torch_prior, torch_process
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
      warnings.simplefilter("ignore")
      patch.setattr(torch_process, "serve", lambda c, payload, t, make, answers: setattr(
        self, "parts", (make(payload), answers)))
      torch_prior.serve(None, content, threads)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def ask(self, request, argument):
    shared, answers = self.parts
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      return 0 if request == "stop" else answers[request](shared, argument)


@pytest.mark.thorough
@pytest.mark.parametrize("name, changes", [
  ("sd15", {"distillation.clip_norm": 0.05, "training.views": 2}),
  ("if-m", {"render.height": 16, "render.width": 16}), ("sdxl", {"prior.crop": (0, 8)})])
def test_peer(command, tiny_published, torch_prior, monkeypatch, name, changes):
  """PyTorch's part of the step computes our cotangents of the images, and the check notices a difference."""
  monkeypatch.setattr(peer, "Process", InProcess)
  monkeypatch.setattr(torch_prior, "try_compiled", lambda prior, inputs: "no compiler")
  config = benchmark.parse(command).config
  config.update_from_flattened_dict({"prior.name": name, "prior.random_weights": True, **changes})
  work = workload.build(Text3DTask(settings_lib.validate(config)))
  assert peer_prior.is_only_comparison(work)
  step = jnp.int32(7)
  draws = step_draws.make_drawer(work)(step)
  part, kept = peer_prior.make_prior_part(work), []
  monkeypatch.setattr(peer_prior, "make_prior_part", lambda work: lambda *args: kept.append(part(*args)) or kept[0])
  result = peer_prior.compare(work, draws, step, steps=1, rounds=1)
  assert result["error"] < 1e-4 and result["skipped"] == {"compiled": "no compiler"}
  assert set(result["torch"]) == {"eager"}
  assert result["ratios"]["eager"] == result["torch"]["eager"]["median_s"] / result["jax"]["median_s"]
  printed = table._peer_of_prior(result)
  assert "rendering left out on both sides" in printed and re.search("torch, compiled: left out, no compiler", printed)
  monkeypatch.setattr(peer_prior, "make_prior_part", lambda work: lambda *args: 1.002 * kept[0])
  with pytest.raises(peer.PeerError, match="PyTorch does not compute the same: relative error of the images' gradient"):
    peer_prior.compare(work, draws, step, steps=1, rounds=1)


@pytest.mark.parametrize("changes, message", [
  ({"distillation.guidance_rescale": 0.5}, "config.distillation.guidance_rescale=0.5: the step in PyTorch has only"),
  ({"distillation.clip_norm": ((0.0, 1.0), (1.0, 2.0))}, "config.distillation.clip_norm=.*has only a constant")])
def test_unsupported_distillation(tiny, changes, message):
  with pytest.raises(peer.PeerError, match=message):
    peer.check_distillation(tiny(changes).distillation)
