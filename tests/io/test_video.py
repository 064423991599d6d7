"""Turntables: decoded frames, GIFs without ffmpeg, and failing encoders."""
import builtins
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from sds_jax.io import video


@pytest.fixture
def frames():
  """Returns frames of odd size: a white bar on red, moving right by an eighth of the width per frame."""
  clip = np.zeros((8, 47, 65, 3), np.float32)
  clip[..., 0] = 0.8
  for i in range(8):
    clip[i, :, 8 * i:8 * i + 8] = 1.0
  return clip


def bar(frame):
  return np.asarray(frame, np.float32)[..., 2].mean(axis=0)[:64].reshape(8, 8).mean(axis=1).argmax()


def test_mp4_decodes_to_the_written_frames(tmp_path, frames):
  ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
  path = video.write_turntable(frames, tmp_path / "turn.mp4", fps=8)
  assert path == tmp_path / "turn.mp4" and [p.name for p in tmp_path.iterdir()] == ["turn.mp4"]
  command = [ffmpeg, "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
  done = subprocess.run(command, capture_output=True, check=True)
  stream, = re.findall(r"Stream .*Video: h264.*", done.stderr.decode())
  assert " yuv420p(tv, bt709" in stream and " 66x48" in stream and " 8 fps" in stream
  decoded = np.frombuffer(done.stdout, np.uint8).reshape(-1, 48, 66, 3)
  assert len(decoded) == 8
  for i, frame in enumerate(decoded):
    assert bar(frame) == i
    assert np.abs(frame[:47, :65] / 255.0 - frames[i]).mean() < 0.06
  head = path.read_bytes()
  assert head.index(b"moov") < head.index(b"mdat")  # the index comes first, for streaming


@pytest.mark.parametrize("size", [(48, 64), (720, 1280)])
def test_colours_are_bt709_at_every_size(tmp_path, size):
  """Converts the stored Y'CbCr by the matrix of BT.709; players take BT.601 for small videos without a tag."""
  ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
  colour = np.array([0.8, 0.2, 0.1])
  path = video.write_turntable(np.broadcast_to(colour, (1, *size, 3)), tmp_path / "turn.mp4")
  command = [ffmpeg, "-i", path, "-f", "rawvideo", "-pix_fmt", "yuv444p", "-"]
  raw = subprocess.run(command, capture_output=True, check=True)
  luma, blue, red = (float(plane.mean()) for plane in np.frombuffer(raw.stdout, np.uint8).reshape(3, *size))
  y, cb, cr = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224  # limited range
  rgb = [y + 1.5748 * cr, y - 0.1873 * cb - 0.4681 * cr, y + 1.8556 * cb]
  np.testing.assert_allclose(rgb, colour, atol=0.012)
  assert re.search(r"yuv420p\(tv, bt709[,)]", raw.stderr.decode())


@pytest.mark.parametrize("folder", ["https:/host/x", "-y", "a:b", "%03d"])
def test_folder_names_with_a_meaning_for_ffmpeg(tmp_path, frames, monkeypatch, folder):
  pytest.importorskip("imageio_ffmpeg")
  monkeypatch.chdir(tmp_path)
  (tmp_path / folder).mkdir(parents=True)
  path = video.write_turntable(frames, f"{folder}/turn.mp4")
  assert path.stat().st_size > 0 and [p.name for p in path.parent.iterdir()] == ["turn.mp4"]


def test_gif_without_ffmpeg(tmp_path, frames, monkeypatch):
  real = builtins.__import__

  def without_ffmpeg(name, *args, **kwargs):
    if name.startswith("imageio_ffmpeg"):
      raise ImportError(name)
    return real(name, *args, **kwargs)
  monkeypatch.setattr(builtins, "__import__", without_ffmpeg)
  path = video.write_turntable(frames, tmp_path / "turn.mp4", fps=10)
  assert path == tmp_path / "turn.gif" and [p.name for p in tmp_path.iterdir()] == ["turn.gif"]
  with Image.open(path) as clip:
    assert clip.n_frames == 8 and clip.size == (65, 47) and clip.info["loop"] == 0
    assert clip.info["duration"] == 100
    for i in range(8):
      clip.seek(i)
      assert bar(clip.convert("RGB")) == i


def test_a_failing_encoder_leaves_no_file(tmp_path, frames, monkeypatch):
  encoder = tmp_path / "bin" / "ffmpeg"
  encoder.parent.mkdir()
  encoder.write_text('#!/bin/sh\nfor last; do :; done\nprintf half > "${last#file:}"\necho no codec >&2\nexit 3\n')
  encoder.chmod(0o755)
  monkeypatch.setattr(video, "_find_ffmpeg", lambda: str(encoder))
  with pytest.raises(OSError, match="could not write .*turn.mp4: no codec"):
    video.write_turntable(frames, tmp_path / "out" / "turn.mp4")
  assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (8, 8, 3), (2, 8, 8, 4)])
def test_other_shapes_are_errors(tmp_path, shape):
  with pytest.raises(ValueError, match=r"\[F, H, W, 3\]"):
    video.write_turntable(np.zeros(shape), tmp_path / "turn.mp4")
