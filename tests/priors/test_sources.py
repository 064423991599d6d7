"""Sources of priors: the fetched files, the repositories, and the errors when no source answers."""
import errno
import fnmatch
import json
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import jax.numpy as jnp
import pytest

from sds_jax.priors import prior as prior_lib, sources
from sds_jax.priors.families import deepfloyd, stable_diffusion
from sds_jax.priors.loading import hub as hub_lib
from sds_jax.priors.loading.files import CheckpointError

SD, IF = stable_diffusion.files({}), deepfloyd.files({})
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
           "safety_checker": "model"}
SMALL = ["model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
         "tokenizer/merges.txt", "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json",
         "tokenizer/vocab.json", "unet/config.json", "vae/config.json"]
LISTING = [".gitattributes", "README.md", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", *SMALL,
           "feature_extractor/preprocessor_config.json", "safety_checker/config.json", "unet/flax_model.msgpack",
           "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/model.onnx",
           *(f"{folder}/{stem}{v}.safetensors" for folder, stem in WEIGHTS.items() for v in ("", ".fp16"))]
T5 = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/spiece.model",
      "text_encoder/config.json", "text_encoder/model.safetensors.index.json", "watermarker/config.json",
      *(f"text_encoder/{stem}-0000{i}-of-00002.{end}" for i in (1, 2)
        for stem, end in (("model", "safetensors"), ("model.fp16", "safetensors"), ("pytorch_model", "bin")))]


def weights(variant):
  folders = WEIGHTS.keys() - {"safety_checker"}
  return sorted(f"{folder}/{WEIGHTS[folder]}{variant}.safetensors" for folder in folders)


@pytest.mark.parametrize("dtype, variant", [(jnp.float32, ""), (jnp.bfloat16, ".fp16"), ("float16", ".fp16")])
def test_only_needed_files_are_chosen(dtype, variant):
  assert sorted(hub_lib.choose_files(LISTING, SD, dtype)) == sorted(SMALL + weights(variant))


def test_full_weights_do_where_there_are_no_others():
  listing = [name for name in LISTING if "fp16" not in name]
  assert sorted(hub_lib.choose_files(listing, SD, jnp.bfloat16)) == sorted(SMALL + weights(""))
  listing = [name for name in LISTING if not name.endswith(".safetensors") or "fp16" in name]
  assert sorted(hub_lib.choose_files(listing, SD, jnp.float32)) == sorted(SMALL + weights(".fp16"))


@pytest.mark.parametrize("index", ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"])
def test_shards(index):
  def of_text_encoder(chosen):
    return sorted(name.removeprefix("text_encoder/") for name in chosen if name.startswith("text_encoder/"))

  full = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
          "model.safetensors.index.json"]
  # fp16 shards are of no use without an index
  assert of_text_encoder(hub_lib.choose_files(T5, IF, jnp.bfloat16)) == full
  half = ["config.json", "model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors", index]
  assert of_text_encoder(hub_lib.choose_files([*T5, f"text_encoder/{index}"], IF, jnp.bfloat16)) == sorted(half)
  assert of_text_encoder(hub_lib.choose_files([*T5, f"text_encoder/{index}"], IF, jnp.float32)) == full
  assert "tokenizer/spiece.model" in hub_lib.choose_files(T5, IF, jnp.float32)


def test_unusable_listings():
  pickled = [name.replace("unet/diffusion_pytorch_model.safetensors", "unet/old.bin") for name in T5]
  with pytest.raises(hub_lib.Unavailable, match="unet/ has no diffusion_pytorch_model.safetensors and no "
                                                "diffusion_pytorch_model.bin"):
    hub_lib.choose_files(pickled, IF, jnp.float32)
  with pytest.raises(hub_lib.Unavailable, match="no model_index.json"):
    hub_lib.choose_files(["config.json", "model.safetensors"], SD, jnp.float32)
  with pytest.raises(hub_lib.Unavailable, match="there is no unet/, no text_encoder/$"):
    hub_lib.choose_files([name for name in T5 if not name.startswith(("unet", "text_encoder"))], IF, jnp.float32)
  for listing, files, needed, expected in ((T5, IF, "spiece.model", "tokenizer.json or spiece.model"),
                                           (LISTING, SD, "merges.txt", "vocab.json with merges.txt or tokenizer.json")):
    with pytest.raises(hub_lib.Unavailable, match=f"tokenizer/ has nothing that is read: expected {expected}$"):
      hub_lib.choose_files([name for name in listing if name != f"tokenizer/{needed}"], files, jnp.float32)


class FakeHub:
  """A hub with a cache in huggingface_hub's layout: {repo: list of files, or the error of asking}."""

  def __init__(self, cache, repos):
    self.cache, self.repos, self.asked, self.fetched = cache, repos, [], []
    self.hub = hub_lib.Hub(cache, self.list_files, self.fetch)

  def list_files(self, repo, revision):
    self.asked.append((repo, revision))
    answer = self.repos.get(repo, status_error(404))
    if isinstance(answer, BaseException):
      raise hub_lib.explain(answer, repo)
    return answer

  def fetch(self, repo, revision, files):
    self.fetched.append((repo, files))
    return self.store(repo, revision, files)

  def store(self, repo, revision, files):
    """Blobs, and links to them in the snapshot, as huggingface_hub does it."""
    base = self.cache / f"models--{repo.replace('/', '--')}"
    for name in files:
      blob, link = base / "blobs" / name.replace("/", "_"), base / "snapshots" / COMMIT / name
      for path in (blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
      blob.write_text('{"_class_name": "StableDiffusionPipeline"}' if name == "model_index.json" else "{}")
      if not link.exists():
        link.symlink_to(os.path.relpath(blob, link.parent))
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / revision).write_text(COMMIT)
    return base / "snapshots" / COMMIT


def status_error(status):
  error = RuntimeError("an answer")
  error.response = type("Response", (), dict(status_code=status))()
  return error


def named(*names):
  """An exception whose classes have these names, the last one its own."""
  kind = Exception
  for name in names:
    kind = type(name, (kind,), {})
  return kind("said the library")


ONE, TWO, *_ = sources.HUB_IDS["sd15"]


@pytest.fixture
def unchecked(monkeypatch):
  """The files of a `FakeHub` have no content to check."""
  monkeypatch.setattr(sources, "open_folder", lambda source, options: (None, None))


def test_the_first_source_that_answers(tmp_path, capsys, unchecked):
  fake = FakeHub(tmp_path, {ONE: status_error(404), TWO: LISTING})
  source = sources.find("sd15", jnp.bfloat16, fake.hub)
  folder = tmp_path / f"models--{TWO.replace('/', '--')}" / "snapshots" / COMMIT
  assert source == sources.Source("sd15", folder, TWO, COMMIT)
  assert fake.asked == [(ONE, "main"), (TWO, "main")] and [repo for repo, _ in fake.fetched] == [TWO] * 3
  assert fake.fetched[0][1] == ["model_index.json"]  # says which other files are needed
  assert sorted(fake.fetched[1][1]) == sorted(SMALL)  # checked before the weights are asked for
  assert sorted(fake.fetched[2][1]) == sorted(SMALL + weights(".fp16"))
  assert f"files of {TWO}" in capsys.readouterr().out
  assert source.as_dict() == dict(name="sd15", folder=str(source.folder), repo=TWO, revision=COMMIT)
  assert str(source) == f"{TWO} at {COMMIT}"
  # From now on it is here, and nobody is asked, though another repository comes first.
  assert sources.find("sd15", jnp.float32, fake.hub) == source and len(fake.asked) == 2


def test_revisions(tmp_path, unchecked):
  fake = FakeHub(tmp_path, {"owner/name": LISTING})
  assert sources.find("owner/name@v2", jnp.float32, fake.hub).revision == COMMIT
  assert fake.asked == [("owner/name", "v2")]
  assert sources.find(f"owner/name@{COMMIT}", jnp.float32, fake.hub).revision == COMMIT and len(fake.asked) == 1


@pytest.mark.parametrize("error, words, everywhere", [
  (named("HfHubHTTPError", "RepositoryNotFoundError", "GatedRepoError"),
   "accept the licence at https://huggingface.co/a/b and log in with `hf auth login`", False),
  (status_error(401), "access is restricted", False),
  (status_error(403), "HF_TOKEN", False),
  (named("HfHubHTTPError", "RepositoryNotFoundError"), "no such repository any more", False),
  (status_error(404), "no such repository any more", False),
  (named("RevisionNotFoundError"), "no such revision", False),
  (status_error(503), "answered with status 503; try again later", False),
  (named("ConnectError"), "can't be reached .no connection, or HF_HUB_OFFLINE is set.", True),
  (ConnectionResetError(), "can't be reached", True),
  (named("OfflineModeIsEnabled"), "HF_HUB_OFFLINE", True),
  (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room, or set HF_HOME", True),
  (named("XetDownloadError"), "XetDownloadError: said the library", False)])
def test_errors_are_explained(error, words, everywhere):
  unavailable = hub_lib.explain(error, "a/b")
  assert unavailable.everywhere == everywhere
  with pytest.raises(hub_lib.Unavailable, match=words):
    raise unavailable


def test_all_sources_fail(tmp_path):
  fake = FakeHub(tmp_path, {ONE: status_error(403)})
  with pytest.raises(CheckpointError) as caught:
    sources.find("sd15", jnp.float32, fake.hub)
  message = str(caught.value)
  assert message.startswith(f"the prior 'sd15' can't be had: {ONE}: access is restricted; accept")
  assert f"{TWO}: there is no such repository" in message and message.endswith("instead: --config.prior.path=PATH")
  assert "\n" not in message
  with pytest.raises(CheckpointError, match="there is no folder 'a/b' here, and from the hub a/b: there is no such"):
    sources.find("a/b", jnp.float32, fake.hub)


def test_without_a_connection_only_one_is_asked(tmp_path):
  fake = FakeHub(tmp_path, {repo: ConnectionError() for repo in sources.HUB_IDS["sd15"]})
  with pytest.raises(CheckpointError, match="can't be reached"):
    sources.find("sd15", jnp.float32, fake.hub)
  assert fake.asked == [(ONE, "main")]


def test_a_download_that_was_broken_off(tmp_path, unchecked):
  """Offline the error lists the missing files; online they are fetched."""
  fake = FakeHub(tmp_path, {ONE: ConnectionError()})
  folder = fake.store(ONE, "main", SMALL + weights("")[:2])
  blob = tmp_path / f"models--{ONE.replace('/', '--')}" / "blobs" / "abc.incomplete"
  blob.write_bytes(b"half")
  with pytest.raises(CheckpointError, match="earlier download vae/diffusion_pytorch_model.safetensors is missing in "):
    sources.find("sd15", jnp.float32, fake.hub)
  fake.repos[ONE] = LISTING
  assert sources.find("sd15", jnp.float32, fake.hub).folder == folder and len(fake.fetched) == 3


def test_missing_files(tmp_path):
  fake = FakeHub(tmp_path, {})
  sharded = [name for name in SMALL + weights("") if name != "unet/diffusion_pytorch_model.safetensors"]
  folder = fake.store(ONE, "main", sharded)
  assert sources.missing(folder) == ["unet/diffusion_pytorch_model.safetensors"]
  shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
  index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
  index.write_text('{"weight_map": {"a": "%s"}}' % shard)
  assert sources.missing(folder) == [f"unet/{shard}"]
  (folder / "unet" / shard).symlink_to("nowhere")  # a blob that is gone
  assert sources.missing(folder) == [f"unet/{shard}"]
  (folder / "unet" / shard).unlink()
  (folder / "unet" / shard).write_text("")
  assert sources.missing(folder) == []
  (folder / "tokenizer" / "merges.txt").unlink()
  assert sources.missing(folder) == ["tokenizer/vocab.json with merges.txt or tokenizer.json"]
  shutil.rmtree(folder / "tokenizer")
  assert sources.missing(folder) == ["tokenizer"]


def test_a_snapshot_without_a_ref_is_read(tmp_path):
  """A download of one commit leaves no refs/main; the newest whole snapshot counts."""
  fake = FakeHub(tmp_path, {})
  folder = fake.store(ONE, "main", SMALL + weights(""))
  (folder.parents[1] / "refs" / "main").unlink()
  assert sources.find("sd15", jnp.float32, fake.hub) == sources.Source("sd15", folder, ONE, COMMIT)
  broken = folder.parent / ("f" * 40)
  broken.mkdir()  # newer, but empty
  assert sources.find("sd15", jnp.float32, fake.hub).folder == folder and fake.asked == []
  with pytest.raises(CheckpointError, match="can't be had"):
    sources.find(f"{ONE}@v2", jnp.float32, fake.hub)
  (folder.parents[1] / "refs" / "main").write_text("f" * 40)
  with pytest.raises(CheckpointError, match="model_index.json is missing in "):
    sources.find("sd15", jnp.float32, fake.hub)


class Copies(FakeHub):
  """A hub with a copy of a folder as owner/name, in which some files are changed; weights are empty."""

  def __init__(self, original, cache, changes=None):
    names = [str(path.relative_to(original)) for path in original.rglob("*") if path.is_file()]
    super().__init__(cache, {"owner/name": names})
    self.original, self.changes = original, changes or {}

  def store(self, repo, revision, files):
    folder = super().store(repo, revision, files)
    for name in files:
      text = (self.original / name).read_text() if not name.endswith(".safetensors") else ""
      (folder / name).write_text(json.dumps(json.loads(text) | self.changes[name]) if name in self.changes else text)
    return folder


@pytest.mark.parametrize("file, change, words", [
  ("model_index.json", dict(_class_name="StableDiffusion3Pipeline"), "_class_name='StableDiffusion3Pipeline'"),
  ("unet/config.json", dict(time_cond_proj_dim=256), "time_cond_proj_dim=256 is not supported"),
  ("unet/config.json", dict(in_channels=9), "the U-Net's in_channels is 9"),
  ("scheduler/scheduler_config.json", dict(_class_name="EDMEulerScheduler"), "_class_name='EDMEulerScheduler'"),
  ("text_encoder/config.json", dict(vocab_size=7), "the vocab_size of text_encoder/ is 7")])
def test_configurations_are_checked_before_the_weights(sd_folder, tmp_path, file, change, words):
  fake = Copies(sd_folder, tmp_path, {file: change})
  with pytest.raises(CheckpointError, match=words):
    sources.find("owner/name", jnp.float32, fake.hub)
  assert not [name for _, files in fake.fetched for name in files if name.endswith(".safetensors")]


def test_the_caller_checks_the_prior_before_the_weights(sd_folder, tmp_path):
  fake = Copies(sd_folder, tmp_path)

  def check(prior):
    assert prior.photo is None and prior.x_shape == (8, 8, 4)
    raise RuntimeError("it takes no photo")

  with pytest.raises(RuntimeError, match="it takes no photo"):
    sources.find("owner/name", jnp.float32, fake.hub, check)
  assert not [name for _, files in fake.fetched for name in files if name.endswith(".safetensors")]


def test_a_symlinked_cache_is_read(prior_folder, tmp_path, monkeypatch):
  """A whole prior through links, found by its hub id and as a folder."""
  base = tmp_path / "models--owner--name"
  snapshot = base / "snapshots" / COMMIT
  files = [path for path in prior_folder.rglob("*") if path.is_file()]
  for i, path in enumerate(files):
    blob, link = base / "blobs" / f"{i:040x}", snapshot / path.relative_to(prior_folder)
    for made in (blob, link):
      made.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, blob)
    link.symlink_to(os.path.relpath(blob, link.parent))
  fake = FakeHub(tmp_path, {})
  (base / "refs").mkdir()
  (base / "refs" / "main").write_text(COMMIT)
  monkeypatch.setattr(sources, "default_hub", lambda: fake.hub)
  prior, params = prior_lib.build("owner/name")
  assert (prior.source.repo, prior.source.revision, fake.asked) == ("owner/name", COMMIT, [])
  assert prior.embed(["a red cube"])["text"].shape == (1, 8, 12) and list(params) == ["unet"]
  assert sources.find(str(snapshot), jnp.float32) == sources.Source(str(snapshot), snapshot, "owner/name", COMMIT)


def test_a_folder_goes_before_a_hub_id(prior_folder, tmp_path, monkeypatch):
  (tmp_path / "owner").mkdir()
  (tmp_path / "owner" / "name").symlink_to(prior_folder)
  monkeypatch.chdir(tmp_path)
  assert sources.find("owner/name", jnp.float32).folder == Path("owner/name")


def test_huggingface_hub_is_found_in_a_fresh_process():
  code = "from sds_jax.priors.loading import hub; print(hub.default_hub().cache)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0 and done.stdout.strip() == huggingface_hub.constants.HF_HUB_CACHE, done.stderr


def test_huggingface_hub_is_asked(monkeypatch, tmp_path):
  asked = []
  siblings = [type("File", (), dict(rfilename=name))() for name in ("a", "b")]
  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo, revision, timeout: (
    asked.append((repo, revision)), type("Info", (), dict(siblings=siblings))())[1])
  hub = hub_lib.default_hub()
  assert hub.cache == Path(huggingface_hub.constants.HF_HUB_CACHE)
  assert hub.list_files("a/b", "main") == ["a", "b"] and asked == [("a/b", "main")]

  def unreachable(repo, revision, allow_patterns):
    assert (repo, revision, allow_patterns) == ("a/b", "main", ["a"])
    raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
  with pytest.raises(hub_lib.Unavailable, match="can't be reached"):
    hub.fetch("a/b", "main", ["a"])
  gated = huggingface_hub.errors.GatedRepoError
  assert "licence" in str(hub_lib.explain(gated.__new__(gated), "a/b"))


def test_a_cache_of_a_former_id_is_used(tmp_path):
  """The repositories of a prior have the same weights; runwayml's is gone."""
  gone, fake = "runwayml/stable-diffusion-v1-5", FakeHub(tmp_path / "hub", {})
  folder = fake.store(gone, "main", SMALL + weights(""))
  for name in ("sd15", gone, TWO):
    assert sources.find(name, jnp.float32, fake.hub) == sources.Source(name, folder, gone, COMMIT)
  assert fake.asked == [] and sources.takes_pictures(gone) is False
  with pytest.raises(CheckpointError, match="sd-legacy.*there is no such repository any more"):
    sources.find(f"{TWO}@v2", jnp.float32, fake.hub)  # another revision is another model
  assert fake.asked == [(TWO, "v2")]


def test_a_former_id_is_fetched_from_its_successor(tmp_path, unchecked):
  fake = FakeHub(tmp_path, {ONE: status_error(404), TWO: LISTING})
  assert sources.find("runwayml/stable-diffusion-v1-5", jnp.bfloat16, fake.hub).repo == TWO
  other = FakeHub(tmp_path / "other", {TWO: LISTING})
  with pytest.raises(CheckpointError, match="no such repository"):
    sources.find(ONE, jnp.float32, other.hub)  # a hub id that was not given up is fetched from itself alone
  assert other.asked == [(ONE, "main")]


def test_the_cache_of_an_old_diffusers_is_used(tmp_path):
  old, fake = FakeHub(tmp_path / "diffusers", {}), FakeHub(tmp_path / "hub", {})
  folder = old.store(ONE, "main", SMALL + weights(""))
  assert sources.find("sd15", jnp.float32, fake.hub).folder == folder and fake.asked == []


@pytest.mark.parametrize("dtype, variant, kind", [(jnp.float32, "", ""), (jnp.float16, "", ".fp16"),
                                                  (jnp.bfloat16, "", ".fp16"), (jnp.float32, "fp16_ema", "")])
def test_without_a_connection_the_command_fetches_only_what_is_read(tmp_path, dtype, variant, kind):
  fake = FakeHub(tmp_path, {ONE: ConnectionError()})
  with pytest.raises(CheckpointError) as caught:
    sources.find("sd15", dtype, fake.hub, options=sources.Options(dtype, variant=variant))
  command = shlex.split(str(caught.value).split("`")[1])
  assert command[:3] == ["hf", "download", ONE]
  included, excluded = (command[command.index("--include") + 1:command.index("--exclude")],
                        command[command.index("--exclude") + 1:])
  listing = [*LISTING, "unet/diffusion_pytorch_model.fp16_ema.safetensors", "v1-5-pruned.safetensors",
             "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.bin"]

  def taken(names):
    return {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in included)
            and not any(fnmatch.fnmatch(name, pattern) for pattern in excluded)}

  chosen = set(hub_lib.choose_files(listing, SD, dtype))
  assert taken(chosen) == chosen  # all that this package would fetch
  heavy = {name for name in taken(listing) if name.endswith((".safetensors", ".bin", ".ckpt"))}
  extra = {"unet/diffusion_pytorch_model.fp16_ema.safetensors"} if variant else set()
  assert heavy == set(weights(kind)) | extra


@pytest.mark.parametrize("name", [".", "./", "./."])
def test_the_current_folder_is_named_in_full(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(CheckpointError, match=f"^{tmp_path}/model_index.json does not exist"):
    prior_lib.open_prior(name)
