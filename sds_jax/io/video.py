"""Turntables: H.264 video with ffmpeg, otherwise an animated GIF."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from sds_jax.io.files import atomic_path, atomic_write
from sds_jax.io.images import to_uint8


def write_turntable(frames: np.ndarray, path: str | os.PathLike, fps: int = 24) -> Path:
  """Writes frames as a looping clip.

  Returns the path of the file. Atomic. With imageio-ffmpeg (the `video` extra): .mp4, H.264 in yuv420p, BT.709, with
  the index in front, playable in every browser. Odd sizes get another row or column (repeated), since 4:2:0 needs even
  sizes. Without imageio-ffmpeg: .gif, by Pillow.

  Args:
    frames: [F, H, W, 3] in [0, 1], F >= 1.
    path: the file; the suffix is replaced by the suffix of the format.
    fps: frames per second.

  Raises:
    ValueError: `frames` has another shape or no frame.
    OSError: ffmpeg failed, for example on a full disk; the message has the end of ffmpeg's message.
  """
  pixels = to_uint8(frames)
  if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.shape[0] == 0:
    raise ValueError(f"frames are [F, H, W, 3] with F >= 1, got {pixels.shape}")
  ffmpeg = _find_ffmpeg()
  if ffmpeg is None:
    return _write_gif(pixels, Path(path).with_suffix(".gif"), fps)
  return _write_mp4(ffmpeg, pixels, Path(path).with_suffix(".mp4"), fps)


def _find_ffmpeg() -> str | None:
  """Returns the path of imageio-ffmpeg's ffmpeg, or None without imageio-ffmpeg."""
  try:
    import imageio_ffmpeg  # optional: its wheel carries 30-70 MB of ffmpeg
    # Raises RuntimeError if the wheel has no binary for the platform.
    return imageio_ffmpeg.get_ffmpeg_exe()
  except (ImportError, RuntimeError):
    return None


def _write_mp4(ffmpeg: str, pixels: np.ndarray, path: Path, fps: int) -> Path:
  """Writes an .mp4 by piping raw frames to ffmpeg."""
  # Not by imageio_ffmpeg.write_frames: write_frames forks, and JAX's threads may not survive a fork.
  height, width = pixels.shape[1:3]
  # Repeated and not black: a black line would show at the border.
  pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
  # crf 18 is visually lossless; faststart puts the index in front, so that browsers start before the end of the file.
  raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{pixels.shape[2]}x{pixels.shape[1]}", "-r", str(fps), "-i", "-"]
  # Converted by BT.709 and tagged so: ffmpeg converts by BT.601 of itself, and players guess an untagged matrix from
  # the size of the video.
  tags = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
  colours = ["-vf", f"scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,{tags}"]
  h264 = ["-c:v", "libx264", "-crf", "18", *colours, "-movflags", "+faststart", "-an"]
  with atomic_path(path) as temporary:
    # With the prefix "file:": ffmpeg reads "a:b" as a protocol and "-" as standard output.
    command = [ffmpeg, "-y", "-loglevel", "error", *raw, *h264, f"file:{temporary.absolute()}"]
    done = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=False)
    if done.returncode != 0:
      raise OSError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace')[-500:].strip()}")
  return path


def _write_gif(pixels: np.ndarray, path: Path, fps: int) -> Path:
  images = [Image.fromarray(frame) for frame in pixels]
  with atomic_write(path) as file:
    images[0].save(file, format="GIF", save_all=True, append_images=images[1:], loop=0,
                     duration=max(20, round(1000 / fps)))  # browsers slow a GIF down when frames are under 20 ms
  return path
