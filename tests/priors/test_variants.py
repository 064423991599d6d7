"""Variants of weights: chosen, listed where they are missing, fetched and found in a cache."""
import doctest
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors import families, prior as prior_lib, sources
from sds_jax.priors.loading import hub as hub_lib, variants
from sds_jax.priors.loading.checkpoint import weight_files
from sds_jax.priors.loading.files import CheckpointError

STEM = "diffusion_pytorch_model"


@pytest.fixture
def folder(sd_folder, tmp_path):
  """A prior whose U-Net has the variants fp16_ema (all weights doubled) and non_ema, as the text encoder fp16."""
  copy = tmp_path / "prior"
  shutil.copytree(sd_folder, copy)
  plain = copy / "unet" / f"{STEM}.safetensors"
  doubled = {name: 2 * array for name, array in load_file(plain).items()}
  save_file(doubled, copy / "unet" / f"{STEM}.fp16_ema.safetensors")
  shutil.copy(plain, copy / "unet" / f"{STEM}.non_ema.safetensors")
  shutil.move(copy / "text_encoder" / "model.safetensors", copy / "text_encoder" / "model.fp16.safetensors")
  return copy


def test_the_variant_is_read(folder):
  plain, ema, raw = (prior_lib.build(folder, variant=variant)[1] for variant in ("", "fp16_ema", "non_ema"))
  for name, factor in ((ema, 2), (raw, 1)):
    np.testing.assert_array_equal(name["unet"]["conv_in"]["kernel"], factor * plain["unet"]["conv_in"]["kernel"])
  np.testing.assert_array_equal(ema["vae"]["quant_conv"]["kernel"], plain["vae"]["quant_conv"]["kernel"])


def test_a_variant_that_is_not_there(folder, prior_folder):
  with pytest.raises(CheckpointError) as caught:
    prior_lib.open_prior(folder, variant="ema")
  assert f"unet/ has no variant 'ema' of its weights (no {STEM}.ema.safetensors)" in str(caught.value)
  assert "one of 'fp16_ema', 'non_ema', or ''" in str(caught.value) and "\n" not in str(caught.value)
  with pytest.raises(CheckpointError, match="set config.prior.variant to '' for the files without a variant"):
    prior_lib.open_prior(prior_folder, variant="fp16")


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"version https://git-lfs", b"\xff" * 64, None])
def test_a_damaged_file_of_the_variant(folder, content):
  path = folder / "unet" / f"{STEM}.fp16_ema.safetensors"
  path.write_bytes(path.read_bytes()[:-8] if content is None else content)
  with pytest.raises(CheckpointError, match=f"{STEM}.fp16_ema.safetensors") as caught:
    prior_lib.open_prior(folder, variant="fp16_ema")
  assert "\n" not in str(caught.value)
  prior_lib.open_prior(folder)  # the other files are not touched


@pytest.mark.parametrize("names, expected", [
  ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", "config.json"], ["", "fp16"]),
  ([f"{STEM}.fp16-00001-of-00002.safetensors", f"{STEM}.safetensors.index.fp16.json"], ["fp16"]),
  ([f"{STEM}-00001-of-00002.safetensors", f"{STEM}.safetensors.index.json"], [""]),
  ([f"{STEM}.ema.safetensors.index.json", f"{STEM}.non_ema.bin", f"{STEM}.fp16.safetensors.md5"], ["ema", "non_ema"]),
  (["model.fp16.safetensors"], [])])
def test_variants_by_names(names, expected):
  assert variants.variants_of(names, STEM) == expected


def test_shards_of_a_variant(tmp_path):
  index = tmp_path / f"{STEM}.safetensors.index.fp16_ema.json"
  index.write_text('{"weight_map": {"a": "%s.fp16_ema-00001-of-00001.safetensors"}}' % STEM)
  (tmp_path / f"{STEM}.safetensors").write_text("")
  assert [path.name for path in weight_files(tmp_path, STEM)] == [f"{STEM}.safetensors"]
  chosen = [path.name for path in weight_files(tmp_path, STEM, "fp16_ema")]
  assert chosen == [f"{STEM}.fp16_ema-00001-of-00001.safetensors"]


FILES = families.STABLE_DIFFUSION.files(dict(_class_name="StableDiffusionPipeline"))
LISTING = ["model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
           *(f"unet/{STEM}{kind}.safetensors" for kind in ("", ".fp16", ".bf16", ".fp16_ema")),
           *(f"vae/{STEM}{kind}.safetensors" for kind in ("", ".fp16")), "text_encoder/model.safetensors"]


@pytest.mark.parametrize("dtype, kind", [(jnp.float32, ""), (jnp.bfloat16, ".bf16"), (jnp.float16, ".fp16")])
def test_the_variant_of_the_dtype_is_fetched(dtype, kind):
  chosen = [name for name in hub_lib.choose_files(LISTING, FILES, dtype) if name.startswith(f"unet/{STEM}")]
  assert chosen == [f"unet/{STEM}{kind}.safetensors"]


def test_a_variant_of_another_format_goes_before_the_plain_weights(tmp_path):
  for name in (f"{STEM}.safetensors", f"{STEM}.bin", f"{STEM}.non_ema.bin"):
    (tmp_path / name).write_text("")
  assert [path.name for path in weight_files(tmp_path, STEM, "non_ema")] == [f"{STEM}.non_ema.bin"]
  assert [path.name for path in weight_files(tmp_path, STEM)] == [f"{STEM}.safetensors"]
  names = [*LISTING, f"unet/{STEM}.non_ema.bin"]
  chosen = [name for name in hub_lib.choose_files(names, FILES, jnp.float32, "non_ema") if name.startswith("unet/")]
  assert chosen == [f"unet/{STEM}.non_ema.bin"]


def test_a_variant_is_fetched():
  chosen = hub_lib.choose_files(LISTING, FILES, jnp.bfloat16, "fp16_ema")
  assert [name for name in chosen if name.endswith(".safetensors")] == [
    f"unet/{STEM}.fp16_ema.safetensors", "text_encoder/model.safetensors", f"vae/{STEM}.fp16.safetensors"]
  with pytest.raises(hub_lib.Unavailable, match="no variant 'ema' .* one of 'bf16', 'fp16', 'fp16_ema', or ''"):
    hub_lib.choose_files(LISTING, FILES, jnp.bfloat16, "ema")


def test_a_cache_without_the_variant_is_not_complete(folder):
  assert sources.missing(folder) == sources.missing(folder, "fp16_ema") == []
  assert sources.missing(folder, "fp16") == [f"unet/{STEM}.fp16.safetensors"]


def test_examples():
  assert doctest.testmod(variants).failed == 0
