"""Textual inversion: tokens of one and of several vectors, the layouts of their files, and what is refused."""
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sds_jax.priors import prior as prior_lib
from sds_jax.priors.loading.additions import read_additions
from sds_jax.priors.loading.checkpoint import COMPONENTS, configs_only, open_component
from sds_jax.priors.loading.embeddings import read_embeddings
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.file_lists import parse_embeddings
from sds_jax.priors.loading.text import open_clip_pair, open_clip_text
from sds_jax.priors.loading.tokenizers import load_tokenizer

WIDTH = 12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SDS_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "text"


def vectors(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(folder, name, tensors):
  save_file(tensors, folder / f"{name}.safetensors")
  return folder / f"{name}.safetensors"


@pytest.fixture
def word(sd_folder):
  """(word) -> the row of a word in the table of the text encoder"""
  table = load_file(sd_folder / "text_encoder" / "model.safetensors")["text_model.embeddings.token_embedding.weight"]
  backend = load_tokenizer(sd_folder / "tokenizer").backend
  return lambda text: table[backend.encode(text, add_special_tokens=False).ids[0]]


def embed(folder, embeddings, prompt):
  encoder = open_clip_text(folder, jnp.float32, additions=read_additions(embeddings=embeddings))
  return np.asarray(encoder([prompt])["text"])


def test_tokens_stand_for_their_vectors(sd_folder, word, tmp_path, cache):
  """A token whose vectors are those of words gives what the words give."""
  one = write(tmp_path, "learned_embeds", {"<thing>": word("red")})
  two = write(tmp_path, "BlueCube", {"emb_params": np.stack([word("blue"), word("cube")])})
  both = f"{one}, {two}"
  plain = embed(sd_folder, (), "a red blue cube cone")
  np.testing.assert_array_equal(embed(sd_folder, both, "a <thing> bluecube cone"), plain)
  np.testing.assert_array_equal(embed(sd_folder, f"<other>={two}", "a red <OTHER> cone"), plain)
  assert np.abs(embed(sd_folder, both, "a <thing> cube cone") - plain).max() > 0.01
  # The same ids with other vectors are not found in the cache.
  with_prior = prior_lib.open_prior(sd_folder, embeddings=both)[0].embed(["a <thing> cube cone"])["text"]
  np.testing.assert_array_equal(with_prior, embed(sd_folder, both, "a <thing> cube cone"))
  before = len(list(cache.iterdir()))
  write(tmp_path, "learned_embeds", {"<thing>": word("blue")})
  np.testing.assert_array_equal(embed(sd_folder, both, "a <thing> cube cone"), embed(sd_folder, (), "a blue cube cone"))
  assert len(list(cache.iterdir())) == before + 2


def test_ids_and_the_warning_of_a_cut(sd_folder, tmp_path):
  path = write(tmp_path, "many", {"emb_params": vectors(4, WIDTH)})
  with configs_only():
    prior_lib.open_prior(sd_folder, embeddings=path)
  additions = read_additions(embeddings=path)
  model, places = open_component(sd_folder / "text_encoder", "clip_text")
  tokenizer = load_tokenizer(sd_folder / "tokenizer")
  size = model.vocab_size
  larger, places, tokenizer = additions.with_tokens("text_encoder", model, places, tokenizer,
                                                    COMPONENTS["clip_text"].table)
  assert larger.vocab_size == size + 4
  (row,) = tokenizer(["a many"])
  assert list(row[2:7]) == [size, size + 1, size + 2, size + 3, tokenizer.eos]
  with pytest.warns(UserWarning, match="the first 6 tokens only; cut off from 'a red blue many cube': 'many cube'"):
    (row,) = tokenizer(["a red blue many cube"])
  assert list(row[4:]) == [size, size + 1, size + 2, tokenizer.eos]


def test_layouts(tmp_path):
  both = dict(clip_l=vectors(2, 768), clip_g=vectors(2, 1280))
  (embedding,) = read_embeddings(write(tmp_path, "xl", both))
  assert embedding.token == "xl" and embedding.count == 2 and set(embedding.vectors) == {
    "text_encoder", "text_encoder_2"}
  found = read_embeddings(write(tmp_path, "two", {"<a>": vectors(WIDTH), "<b>": vectors(3, WIDTH)}))
  assert [(embedding.token, embedding.count) for embedding in found] == [("<a>", 1), ("<b>", 3)]
  folder = tmp_path / "concept"
  folder.mkdir()
  write(folder, "learned_embeds", {"<c>": vectors(WIDTH).astype(jnp.bfloat16)})
  (embedding,) = read_embeddings(folder)
  assert embedding.token == "<c>"
  (embedding,) = read_embeddings(folder, "word")
  assert embedding.token == "word"


def test_two_text_encoders(sdxl_folder, tmp_path):
  """A token has a vector for each encoder; the pooled text is still that of the end of the prompt."""
  red = load_tokenizer(sdxl_folder / "tokenizer").backend.encode("red", add_special_tokens=False).ids
  table = "text_model.embeddings.token_embedding.weight"
  first, second = (load_file(sdxl_folder / f"text_encoder{suffix}" / "model.safetensors")[table][red]
                   for suffix in ("", "_2"))
  path = write(tmp_path, "toy", dict(clip_l=first, clip_g=second))
  plain = open_clip_pair(sdxl_folder, jnp.float32, True)(["a red cube"])
  new = open_clip_pair(sdxl_folder, jnp.float32, True, additions=read_additions(embeddings=path))(["a toy cube"])
  np.testing.assert_array_equal(new["text"], plain["text"])
  np.testing.assert_allclose(new["pooled"], plain["pooled"], atol=1e-6)
  one = write(tmp_path, "one", {"<one>": first[0]})
  with pytest.raises(CheckpointError, match="one.safetensors has no vectors for the second text encoder of the prior"):
    prior_lib.open_prior(sdxl_folder, embeddings=one)


@pytest.mark.parametrize("name, tensors, expected", [
  ("x", {"<t>": vectors(768)}, r"<t> has vectors of length 768 \(Stable Diffusion 1.x\), and the text encoder of the "
                               "prior takes 12; take"),
  ("x", dict(clip_l=vectors(1, WIDTH), clip_g=vectors(1, 1280)), "changes the second text encoder .clip_g"),
  ("x", dict(clip_l=vectors(1, WIDTH), clip_g=vectors(2, 20)), "clip_l and clip_g have different numbers of vectors"),
  ("x", dict(clip_g=vectors(1, WIDTH)), "changes the second text encoder"),
  ("a", dict(emb_params=vectors(1, WIDTH)), r"its token 'a' is in the tokenizer's vocabulary already; write TOKEN=.*"
                                            "such as <a>"),
  ("x", {"<t>": np.full(WIDTH, np.inf, np.float32)}, "the tensor <t> has 12 values of 12 that are NaN or infinite"),
  ("x", {"lora_unet_x.lora_down.weight": vectors(2, 3, 1, 1)}, "is a LoRA and no textual inversion"),
  ("x", {"<t>": vectors(0, WIDTH)}, "no textual inversion"),
  ("x", {"<t>": np.zeros(WIDTH, np.int32)}, "it has no vectors"),
  ("x", {" ": vectors(WIDTH)}, "the token ' ' should have 1 to 200 printable characters")])
def test_what_does_not_fit(name, tensors, expected, sd_folder, tmp_path):
  path = write(tmp_path, name, tensors)
  with pytest.raises(CheckpointError, match=expected) as error:
    additions = read_additions(embeddings=path)
    additions.check(("unet", "text_encoder"), "the prior 'sd'")
    open_clip_text(sd_folder, jnp.float32, additions=additions)(["x"])
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_tokens_that_collide(sd_folder, zero123_folders, tmp_path):
  one, two = (write(tmp_path, name, {"<T>": vectors(WIDTH)}) for name in ("one", "two"))
  with pytest.raises(CheckpointError, match=f"{two}: its token '<t>' is also that of {one}"):
    prior_lib.open_prior(sd_folder, embeddings=(f"<T>={one}", ("<t>", two)))
  with pytest.raises(CheckpointError, match="cannot all be '<x>'"):
    read_additions(embeddings=[("<x>", write(tmp_path, "ab", {"<a>": vectors(3), "<b>": vectors(3)}))])
  with pytest.raises(CheckpointError, match="changes the text encoder .<T>., .*it takes additions to the U-Net only"):
    prior_lib.open_prior(zero123_folders["Zero123Pipeline"], embeddings=one)


def test_tokens_of_the_folder(sd_folder, word, tmp_path):
  """A folder that diffusers has saved after a textual inversion: a larger table, and added_tokens.json."""
  folder = tmp_path / "saved"
  shutil.copytree(sd_folder, folder)
  path = folder / "text_encoder" / "model.safetensors"
  tensors, config = load_file(path), json.loads((folder / "text_encoder" / "config.json").read_text())
  table = "text_model.embeddings.token_embedding.weight"
  size = len(tensors[table])
  save_file(tensors | {table: np.concatenate([tensors[table], word("red")[None]])}, path)
  (folder / "text_encoder" / "config.json").write_text(json.dumps(config | dict(vocab_size=size + 1)))
  (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<thing>": size}))
  more = write(tmp_path, "more", {"<more>": word("blue")})
  np.testing.assert_array_equal(embed(folder, more, "a <thing><more> cube"), embed(sd_folder, (), "a red blue cube"))
  with pytest.raises(CheckpointError, match="its token '<thing>' is in the tokenizer's vocabulary already"):
    embed(folder, f"<thing>={more}", "x")


@pytest.mark.parametrize("value, expected", [
  ("<cat>=a.st, b.st", (("<cat>", "a.st"), ("", "b.st"))), ("", ()), (("b.st",), (("", "b.st"),)),
  ([["<c>", "a.st"]], (("<c>", "a.st"),)), ("('<c>=a=1.st',)", (("<c>", "a=1.st"),))])
def test_forms_of_the_setting(value, expected):
  assert parse_embeddings(value) == expected == parse_embeddings(expected)


def test_a_path_with_an_equals_sign(tmp_path):
  (tmp_path / "steps=5").mkdir()
  path = write(tmp_path / "steps=5", "e", {"<t>": vectors(3)})
  assert parse_embeddings(str(path)) == (("", str(path)),)
  assert re.fullmatch("<t>", read_additions(embeddings=str(path)).embeddings[0].token)
