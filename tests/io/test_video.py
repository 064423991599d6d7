import builtins
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from sds_jax.io import video


@pytest.fixture
def frames():
  """A white bar that walks to the right over a red background, one eighth of the width per frame; odd sizes."""
  clip = np.zeros((8, 47, 65, 3), np.float32)
  clip[..., 0] = 0.8
  for i in range(8):
    clip[i, :, 8 * i:8 * i + 8] = 1.0
  return clip


def bar(frame):
  return np.asarray(frame, np.float32)[..., 2].mean(axis=0)[:64].reshape(8, 8).mean(axis=1).argmax()


def test_mp4_decodes_to_the_frames_that_went_in(tmp_path, frames):
  ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
  path = video.write_turntable(frames, tmp_path / "turn.mp4", fps=8)
  assert path == tmp_path / "turn.mp4" and [p.name for p in tmp_path.iterdir()] == ["turn.mp4"]
  command = [ffmpeg, "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
  done = subprocess.run(command, capture_output=True, check=True)
  stream, = re.findall(r"Stream .*Video: h264.*", done.stderr.decode())
  assert " yuv420p(" in stream and " 66x48" in stream and " 8 fps" in stream
  decoded = np.frombuffer(done.stdout, np.uint8).reshape(-1, 48, 66, 3)
  assert len(decoded) == 8
  for i, frame in enumerate(decoded):
    assert bar(frame) == i
    assert np.abs(frame[:47, :65] / 255.0 - frames[i]).mean() < 0.06
  head = path.read_bytes()
  assert head.index(b"moov") < head.index(b"mdat")  # the index comes first, so playing starts before the end is read


@pytest.mark.parametrize("folder", ["https:/host/x", "-y", "a:b", "%03d"])
def test_folders_that_ffmpeg_would_take_for_something_else(tmp_path, frames, monkeypatch, folder):
  pytest.importorskip("imageio_ffmpeg")
  monkeypatch.chdir(tmp_path)
  (tmp_path / folder).mkdir(parents=True)
  path = video.write_turntable(frames, f"{folder}/turn.mp4")
  assert path.stat().st_size > 0 and [p.name for p in path.parent.iterdir()] == ["turn.mp4"]


def test_gif_where_ffmpeg_is_missing(tmp_path, frames, monkeypatch):
  real = builtins.__import__

  def without_ffmpeg(name, *args, **kwargs):
    if name.startswith("imageio_ffmpeg"):
      raise ImportError(name)
    return real(name, *args, **kwargs)
  monkeypatch.setattr(builtins, "__import__", without_ffmpeg)
  path = video.write_turntable(frames, tmp_path / "turn.mp4", fps=10)
  assert path == tmp_path / "turn.gif" and [p.name for p in tmp_path.iterdir()] == ["turn.gif"]
  with Image.open(path) as picture:
    assert picture.n_frames == 8 and picture.size == (65, 47) and picture.info["loop"] == 0
    assert picture.info["duration"] == 100
    for i in range(8):
      picture.seek(i)
      assert bar(picture.convert("RGB")) == i


def test_an_encoder_that_dies_leaves_nothing(tmp_path, frames, monkeypatch):
  encoder = tmp_path / "bin" / "ffmpeg"
  encoder.parent.mkdir()
  encoder.write_text('#!/bin/sh\nfor last; do :; done\nprintf half > "${last#file:}"\necho no codec >&2\nexit 3\n')
  encoder.chmod(0o755)
  monkeypatch.setattr(video, "_find_ffmpeg", lambda: str(encoder))
  with pytest.raises(OSError, match="could not write .*turn.mp4: no codec"):
    video.write_turntable(frames, tmp_path / "out" / "turn.mp4")
  assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (8, 8, 3), (2, 8, 8, 4)])
def test_wrong_shapes(tmp_path, shape):
  with pytest.raises(ValueError, match=r"\[F, H, W, 3\]"):
    video.write_turntable(np.zeros(shape), tmp_path / "turn.mp4")
