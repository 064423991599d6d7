"""Folders of the hub's cache: what is used without a connection, and what an error says of the rest."""
import jax.numpy as jnp
import pytest

from sds_jax.priors import sources
from sds_jax.priors.loading import hub as hub_lib
from sds_jax.priors.loading.files import CheckpointError

COMMIT = "89abcdef" * 5
REPO = "someone/fine-tune"
SMALL = ["scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
         "unet/config.json", "vae/config.json"]
PICKLES = ["unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"]


@pytest.fixture
def offline(tmp_path):
  """(names of files) -> a hub without a connection, with one snapshot of REPO in its cache."""
  def make(names):
    folder = tmp_path / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    for name in names:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_text("{}")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')

    def never(repo, *_):
      raise hub_lib.explain(ConnectionError(), repo)

    return folder, hub_lib.Hub(tmp_path, never, never)

  return make


def test_pickles_alone_are_a_complete_copy(offline):
  """Many repositories of 2022 have no safetensors; their pickles are read without running code."""
  folder, hub = offline([*SMALL, *PICKLES, "safety_checker/pytorch_model.bin"])
  assert sources.find(REPO, jnp.float32, hub) == sources.Source(REPO, folder, REPO, COMMIT)


@pytest.mark.parametrize("weights, absent", [
  (PICKLES[:2], "text_encoder/model.safetensors"),
  (["unet/flax_model.msgpack", *PICKLES[1:]], "unet/diffusion_pytorch_model.safetensors"), ([], "unet")])
def test_an_incomplete_copy_is_described(offline, weights, absent):
  folder, hub = offline([*SMALL, *weights])
  with pytest.raises(CheckpointError, match=f"of an earlier download .*{absent}.* is missing in {folder}") as caught:
    sources.find(REPO, jnp.float32, hub)
  message = str(caught.value)
  assert "the hub can't be reached" in message and f"`hf download {REPO} --include " in message and "\n" not in message
