"""The settings of a ControlNet: its kind by its name, and contradictions, all before any file is looked for."""
import pytest

from sds_jax.settings import validate

DEPTH = "lllyasviel/control_v11f1p_sd15_depth"


@pytest.mark.parametrize("changes, kind", [
  ({"prior.controlnet": DEPTH}, "depth"),
  ({"prior.controlnet": "lllyasviel/control_v11p_sd15_normalbae"}, "normal"),
  ({"prior.controlnet": "mine.safetensors", "prior.controlnet_kind": "normal"}, "normal"),
  ({"prior.controlnet": "depth", "prior.controlnet_scale": 0.5}, "depth"),
  ({"prior.controlnet": "depth", "prior.name": "stable-diffusion-v1-5/stable-diffusion-v1-5"}, "depth"),
  ({"prior.controlnet": "depth", "prior.name": "somebody/a-fine-tune"}, "depth"),
  ({"prior.controlnet": "depth", "prior.path": "folder", "prior.name": "shapeworld"}, "depth"),
  ({}, "")])
def test_the_kind_is_told_by_the_name(changed, changes, kind):
  assert validate(changed({"prior.name": "sd15", **changes})).prior.control_kind == kind


@pytest.mark.parametrize("changes, task, message", [
  ({"prior.controlnet": "mine.safetensors"}, "text3d",
   "config.prior.controlnet='mine.safetensors' does not say by its name what images it reads: set "
   "config.prior.controlnet_kind to one of depth, normal"),
  ({"prior.controlnet_kind": "depth"}, "text3d",
   "config.prior.controlnet_kind='depth' has no effect because config.prior.controlnet='': leave it at 'auto'"),
  ({"prior.controlnet_scale": 0.5}, "text3d", "config.prior.controlnet_scale=0.5 has no effect because"),
  ({"prior.controlnet": "depth", "prior.controlnet_scale": -1.0}, "text3d", "from 0 to 100"),
  ({"prior.controlnet": "depth", "prior.controlnet_kind": "canny"}, "text3d", "one of auto, depth, normal"),
  ({"prior.controlnet": "depth"}, "image2d",
   "config.prior.controlnet='depth' reads depth or normals of an object, and images have none"),
  ({"prior.controlnet": "depth", "prior.name": "zero123"}, "image3d", "config.prior.controlnet='depth' is for"),
  *(({"prior.controlnet": DEPTH, "prior.name": name}, "text3d",
     f"config.prior.controlnet={DEPTH!r} is for Stable Diffusion 1.x, not for config.prior.name={name!r}: set "
     "config.prior.name to sd15")
    for name in ("shapeworld", "sd21-base", "stabilityai/stable-diffusion-2-1", "if-m"))])
def test_contradictions_are_one_line(changed, mistake, changes, task, message):
  assert message in mistake(changed({"prior.name": "sd15", **changes} if task != "image3d" else changes, task))
