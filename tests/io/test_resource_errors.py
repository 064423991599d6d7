"""Explanations of exhausted resources, from errors of the system and of libraries."""
import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax import settings
from sds_jax.io import resource_errors

FULL = "[Errno 28] No space left on device"


def chained(last, *earlier):
  """Returns `last` with `earlier` as the chain of contexts, the first cause last."""
  error = last
  for cause in earlier:
    error.__context__ = cause
    error = cause
  return last


@pytest.mark.parametrize("error, parts", [
  (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nBufferAssignment:\n"),
   ("the device has run out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.)", "training.views",
    "render.num_samples", "prior.vae_remat=True", "prior.dtype=bfloat16")),
  (jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"), ("the device has run out",)),
  (MemoryError(), ("this machine has run out of memory (MemoryError)", "training.views")),
  (OSError(errno.ENOSPC, "No space left on device"), (f"the disk is full ({FULL})", "make room", "--workdir")),
  (OSError(errno.EDQUOT, "Disk quota exceeded"), ("the disk quota is used up",)),
  (OSError("a checkpoint could not be written to /x: No space left on device"), ("the disk is full (a checkpoint",)),
  (ValueError("INTERNAL: ... [os_error_code='28'] No space left on device"), ("the disk is full",)),
  (OSError(errno.EROFS, "Read-only file system", "run/.x.tmp.png"), ("cannot be written to any more", "writable")),
  (OSError("a checkpoint could not be written to /x: Read-only file system"), ("cannot be written to any more",)),
  (chained(OSError("event loop"), KeyError("x"), OSError(errno.ENOSPC, "No space left on device")), (FULL,)),
])
def test_exhausted_resources_are_explained(error, parts):
  line = resource_errors.explain(error)
  assert all(part in line for part in parts) and "\n" not in line, line


@pytest.mark.parametrize("error", [
  jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes"), RuntimeError("RESOURCE_EXHAUSTED"), ValueError("x"),
  FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
  PermissionError(errno.EACCES, "Permission denied", "/elsewhere/unet.safetensors")])
def test_other_errors_are_not_explained(error, tmp_path):
  assert resource_errors.explain(error, tmp_path) is None


def test_refused_files_in_the_run_folder_are_explained(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  refused = PermissionError(errno.EACCES, "Permission denied", os.path.join("run", ".abc.tmp.png"))
  line = resource_errors.explain(refused, resource_errors.Path("run"))
  assert "the folder run cannot be written to any more" in line and "Permission denied" in line


def test_the_remedy_depends_on_mode_and_job(tmp_path):
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: x")
  for step in ("9", "10", ".tmp"):
    (tmp_path / "checkpoints" / step).mkdir(parents=True)
  assert resource_errors.explain(error, tmp_path).endswith("; the same command then goes on from step 10")
  for mode, words in (("export", "export.image_size"), ("train", "training.views")):
    assert words in resource_errors.explain(error, tmp_path, mode, "image2d")
  assert "render" not in resource_errors.explain(error, tmp_path, "train", "image2d")
  assert "goes on" not in resource_errors.explain(error, tmp_path, "export")


@pytest.mark.parametrize("job", settings.TREES)
def test_every_job_has_a_remedy_for_memory(job):
  assert "config.training.views" in resource_errors.explain(MemoryError(), None, "train", job)


def test_a_circular_chain_ends():
  one, two = KeyError("one"), KeyError("two")
  one.__cause__, two.__cause__ = two, one
  assert resource_errors.explain(one) is None


def test_messages_of_the_installed_jax_and_numpy():
  with pytest.raises(jax.errors.JaxRuntimeError) as device:
    jax.jit(lambda: jnp.zeros(1 << 44, jnp.float32) + 1)().block_until_ready()
  assert resource_errors.explain(device.value).startswith("the device has run out of memory (RESOURCE_EXHAUSTED")
  with pytest.raises(MemoryError) as host:
    np.ones(1 << 48)
  assert resource_errors.explain(host.value).startswith("this machine has run out of memory (Unable to allocate")
