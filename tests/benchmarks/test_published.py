"""The benchmark for published priors, with tiny networks in their place."""
import json
import re
import warnings

import jax
import jax.numpy as jnp
import pytest

from sds_jax.benchmarks import memory, peer, peer_prior, table, timing, workload
from sds_jax.benchmarks import step as benchmark
from sds_jax.priors.loading import checkpoint
from sds_jax.training import validation

SMALL = {"render.height": 8, "render.width": 8, "render.num_samples": 4, "render.candidates": 8, "field.name": "mlp",
         "field.mlp.hidden": 8, "field.mlp.depth": 1, "field.mlp.num_octaves": 2, "shading.lambertian": 0.0,
         "shading.textureless": 0.0, "occupancy.every": 0, "prior.dtype": "float32"}


@pytest.fixture
def command(tmp_path):
  """The command line for the tiny `sd15`, made smaller still."""
  return ["step", "--prior=sd15", "--random_weights", f"--json={tmp_path / 'record.json'}", "--steps=1", "--warmup=0",
          "--at=0", "--repeats=1", "--rounds=1", "--matmul=64", *(f"--config.{name}={v}" for name, v in SMALL.items())]


def test_settings_are_those_of_the_command(command):
  config = benchmark.settings(benchmark.parse(command))
  assert config.prior.random_weights and config.prior.name == "sd15" and config.camera.fov_deg == (40.0, 70.0)
  assert config.distillation.guidance_scale == (100.0,) and config.training.views == 1  # of configs/text.py
  apart = benchmark.settings(benchmark.parse(["step", "--prior", "if-m", "--random_weights"]))
  assert apart.prior.name == "if-m" and apart.camera.fov_deg == (40.0, 70.0)
  assert benchmark.settings(benchmark.parse(["step"])).prior.name == "shapeworld"
  with pytest.raises(validation.ConfigError, match="config.prior.random_weights=True needs the name of a published"):
    benchmark.settings(benchmark.parse(["step", "--prior=shapeworld", "--random_weights"]))


def test_command(command, tiny_published, monkeypatch, tmp_path, capsys):
  """What it writes, for a latent prior; nothing is compiled here, since the other command does just that."""
  compiled = jax.jit(lambda: 0).lower().compile()
  times = dict(cold_s=2.0, cached_s=1.0, cache_hits=1)
  monkeypatch.setattr(workload, "compile_twice", lambda work, state: (compiled, times))
  monkeypatch.setattr(workload, "run_steps", lambda work, compiled, state, steps: (
    state, [dict(seconds=0.5, shaded=False)] * steps))
  monkeypatch.setattr(timing, "repeat", lambda function, *args, repeats: [0.25] * repeats)
  assert benchmark.main(command) == 0
  printed, record = capsys.readouterr().out, json.loads((tmp_path / "record.json").read_text())
  assert "prior: sd15 (random weights)" in printed and record["prior_source"]["folder"] == "random weights"
  found = record["parts"]
  assert table.step_flops(found, "albedo") == sum(found[name]["flops"] for name in (
    "render albedo, forward and backward", "prior", "encoder, forward and backward"))
  assert found["encoder, forward and backward"]["flops"] > 1e6 and found["prior"]["flops"] > 1e6
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
  """Nothing is allocated or run; rays are rendered as on an accelerator; a CPU owns up to its copies."""
  seen = []

  def compiled(work, state):
    seen.append((work, state))
    return jax.jit(lambda: 0).lower().compile(), 1.5

  monkeypatch.setattr(workload, "compile_step", compiled)
  monkeypatch.setattr(workload, "run_steps", None)
  assert benchmark.main([*command, "--memory_only", f"--config.prior.dtype={dtype}"]) == 0
  (work, state), printed = seen[0], capsys.readouterr().out
  leaves = jax.tree.leaves((work.prior_params, state))
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves) and work.scene.options.block_points == 2**18
  assert {leaf.dtype for leaf in jax.tree.leaves(work.prior_params)} == {jnp.dtype(dtype)}
  assert ("an upper bound for accelerators" in printed) == (dtype == "bfloat16")
  assert "weights of the vae" in printed and "no weights were allocated" in printed


def test_total():
  plan = dict(argument=100, output=30, temp=50, alias=25, generated_code=1)
  assert memory.total(plan) == 156


@pytest.fixture(scope="module")
def torch_prior():
  """`benchmarks.torch_prior`, imported without the warnings of torch's and diffusers' own making."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for module in ("torch", "diffusers"):
      pytest.importorskip(module, reason="needs sds_jax[parity]", exc_type=ImportError)
    from sds_jax.benchmarks import torch_prior as module
    return module


class InProcess:
  """`peer.Process` without another process."""

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

  def ask(self, what, argument):
    thing, answers = self.parts
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      return 0 if what == "stop" else answers[what](thing, argument)


@pytest.mark.thorough
@pytest.mark.parametrize("name, changes", [
  ("sd15", {"distillation.clip_norm": (0.05,), "training.views": 2}),
  ("if-m", {"render.height": 16, "render.width": 16})])
def test_peer(command, tiny_published, torch_prior, monkeypatch, name, changes):
  """PyTorch's part of the step gives images the cotangents that the trainer's gives; the check sees a difference."""
  monkeypatch.setattr(peer, "Process", InProcess)
  monkeypatch.setattr(torch_prior, "try_compiled", lambda prior, given: "no compiler")
  config = benchmark.parse(command).config
  config.update_from_flattened_dict({"prior.name": name, "prior.random_weights": True, **changes})
  work = workload.build(validation.validate(config))
  assert peer_prior.wanted(work)
  step = jnp.int32(7)
  draws = workload.drawer(work)(step)
  part, kept = peer_prior.own_part(work), []
  monkeypatch.setattr(peer_prior, "own_part", lambda work: lambda *args: kept.append(part(*args)) or kept[0])
  found = peer_prior.compare(work, draws, step, steps=1, rounds=1)
  assert found["error"] < 1e-4 and found["skipped"] == {"compiled": "no compiler"} and set(found["torch"]) == {"eager"}
  assert found["ratios"]["eager"] == found["torch"]["eager"]["median_s"] / found["jax"]["median_s"]
  printed = table._peer_of_prior(found)
  assert "rendering left out on both sides" in printed and re.search("torch, compiled: left out, no compiler", printed)
  monkeypatch.setattr(peer_prior, "own_part", lambda work: lambda *args: 1.002 * kept[0])
  with pytest.raises(peer.PeerError, match="PyTorch does not compute the same: relative error of the images' gradient"):
    peer_prior.compare(work, draws, step, steps=1, rounds=1)


def test_what_the_peer_cannot_do(tiny):
  config = validation.validate(tiny({"distillation.guidance_rescale": (0.5,)}))
  with pytest.raises(peer.PeerError, match="config.distillation.guidance_rescale=.0.5,.: the step in PyTorch only"):
    peer.check_distillation(config)
