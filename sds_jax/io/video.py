"""Turntables: H.264 video where ffmpeg is at hand, else an animated GIF."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from sds_jax.io.files import atomic_path, atomic_write
from sds_jax.io.images import to_uint8


def write_turntable(frames: np.ndarray, path: str | os.PathLike, fps: int = 24) -> Path:
  """Writes frames [F, H, W, 3] in [0, 1] as a looping clip; returns the path written, atomically.

  With imageio-ffmpeg (the `video` extra): .mp4, H.264 in yuv420p with the index in front, which every browser plays;
  odd sizes get one more row or column (repeated), because 4:2:0 needs even ones. Without: .gif, by Pillow. The suffix
  of `path` is replaced by that of the format.

  Raises:
    ValueError: frames of another shape, or none.
    OSError: ffmpeg could not write it (a full disk, say), with the end of what it said.
  """
  pixels = to_uint8(frames)
  if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.shape[0] == 0:
    raise ValueError(f"frames are [F, H, W, 3] with F >= 1, got {pixels.shape}")
  ffmpeg = _find_ffmpeg()
  if ffmpeg is None:
    return _write_gif(pixels, Path(path).with_suffix(".gif"), fps)
  return _write_mp4(ffmpeg, pixels, Path(path).with_suffix(".mp4"), fps)


def _find_ffmpeg() -> str | None:
  """The path of the ffmpeg that imageio-ffmpeg brings, or None where there is none."""
  try:
    import imageio_ffmpeg  # optional: its wheel carries 30-70 MB of ffmpeg
    return imageio_ffmpeg.get_ffmpeg_exe()
  except (ImportError, RuntimeError):
    return None


def _write_mp4(ffmpeg: str, pixels: np.ndarray, path: Path, fps: int) -> Path:
  """Pipes raw frames to ffmpeg. (Not by imageio_ffmpeg.write_frames: it forks, which JAX's threads may not survive.)"""
  height, width = pixels.shape[1:3]
  pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
  raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{pixels.shape[2]}x{pixels.shape[1]}", "-r", str(fps), "-i", "-"]
  h264 = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-an"]
  with atomic_path(path) as temporary:
    # As a file, whatever its name: ffmpeg takes "a:b" for a protocol, and "-" for its output.
    command = [ffmpeg, "-y", "-loglevel", "error", *raw, *h264, f"file:{temporary.absolute()}"]
    done = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=False)
    if done.returncode != 0:
      raise OSError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace')[-500:].strip()}")
  return path


def _write_gif(pixels: np.ndarray, path: Path, fps: int) -> Path:
  pictures = [Image.fromarray(frame) for frame in pixels]
  with atomic_write(path) as file:
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], loop=0,
                     duration=max(20, round(1000 / fps)))  # browsers slow a GIF down when frames are under 20 ms
  return path
