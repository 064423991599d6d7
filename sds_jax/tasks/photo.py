"""The photo of image-to-3D: reading, storing in the run's folder, encoding for the prior."""
from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sds_jax import schema
from sds_jax.io import files, images, photos, run_files
from sds_jax.priors.prior import Prior
from sds_jax.settings.photo import PhotoSettings
from sds_jax.settings.render import RenderSettings
from sds_jax.training.terms.reference import PhotoData
from sds_jax.training.workspace import ResumeError, WorkdirError

INPUT, ABOUT = "input.png", "picture.json"
"""The framed photo, and its data, beside copies of the user's files: original.*, depth.*, normals.*."""

MIN_KNOWN = 0.05
"""Share of the object that a map must cover."""

ESTIMATED_DEG = (-10.0, 60.0)
"""Range of estimated elevations, degrees."""


class InputPhoto(NamedTuple):
  """The photo of the settings.

  Attributes:
    photo: with its frame.
    arrays: for the steps, float32: `photo` [S, S, 4], colours times opacity, and opacity; and of the given maps
      `depth` (or `disparity`) [S, S, 2] and `normals` [S, S, 4], as `reference.LOSSES` take them.
  """
  photo: photos.Photo
  arrays: dict[str, np.ndarray]


def read_input(image: str, settings: PhotoSettings, render: RenderSettings) -> InputPhoto:
  """Reads the photo and its maps at twice the size of the renders.

  At this size the renders lose no detail of the photo.

  Args:
    image: path of the photo.
    settings: framing, background and maps.
    render: sizes of the renders.

  Raises:
    PictureError: a file cannot be used.
  """
  size = photo_size(render)
  photo = photos.read_photo(image, size, settings.framing, settings.background)
  opacity = photo.opacity[..., None]
  # From colours over white to colours times opacity.
  arrays = dict(photo=np.concatenate([photo.rgb - (1.0 - opacity), opacity], -1))
  for name, (path, channels) in _maps(settings).items():
    values, known = photos.read_map(path, photo.frame, size, channels)
    # A map of normals holds (n + 1) / 2.
    values, known = (2.0 * values - 1.0 if name == "normals" else values), known[..., None] * opacity
    if known.sum() < MIN_KNOWN * opacity.sum():
      raise photos.PictureError(f"{path} is transparent where {image} shows the object")
    # Values are multiplied by the confidence, so that resizing averages the known pixels only.
    arrays[name] = np.concatenate([values * known, known], -1)
  return InputPhoto(photo, {name: np.asarray(values, np.float32) for name, values in arrays.items()})


def _maps(settings: PhotoSettings) -> dict[str, tuple[str, int]]:
  """Returns {the quantity of each given map: (file, channels)}."""
  maps = {settings.depth_is: (settings.depth, 1), "normals": (settings.normals, 3)}
  return {name: (path, channels) for name, (path, channels) in maps.items() if path}


def photo_size(settings: RenderSettings) -> int:
  """Returns the side of the photo's arrays in pixels."""
  # At least 256 pixels, at which Zero-1-to-3 encodes its photo.
  return 2 * max(settings.height, *(size for _, size in settings.milestones), 128)


def array_shapes(picture: PhotoSettings, render: RenderSettings) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of `InputPhoto.arrays`, which every process knows from the settings."""
  # One channel more, for the confidence.
  size, channels = photo_size(render), {name: count + 1 for name, (_, count) in _maps(picture).items()}
  return {name: jax.ShapeDtypeStruct((size, size, count), jnp.float32)
          for name, count in {"photo": 4, **channels}.items()}


def encode_photo(settings: PhotoSettings, prior: Prior, arrays: dict[str, Any]) -> PhotoData:
  """Encodes the photo for the prior.

  The elevation of the photo's camera is printed and returned.

  Args:
    settings: azimuth and elevation of the photo's camera.
    prior: conditioned on images.
    arrays: of `InputPhoto`.

  Returns:
    The conditions of a run: `features`, the encoded photo; `azimuth` and `elevation` [] in radians; and `arrays`.
  """
  photo = jnp.asarray(arrays["photo"])
  encoded = prior.photo.encode(photo[..., :3] + 1.0 - photo[..., 3:])  # over white
  if settings.elevation_deg == schema.AUTO:
    degrees = min(max(math.degrees(float(encoded["elevation"])), ESTIMATED_DEG[0]), ESTIMATED_DEG[1])
    print(f"elevation of the photo's camera: {degrees:.0f} degrees, estimated by the prior "
          "(--config.picture.elevation_deg=... sets it)")
  else:
    degrees = settings.elevation_deg
    print(f"elevation of the photo's camera: {degrees:.0f} degrees (config.picture.elevation_deg)")
  return dict(features=encoded, azimuth=jnp.float32(math.radians(settings.azimuth_deg)),
              elevation=jnp.float32(math.radians(degrees)), **jax.tree.map(jnp.asarray, arrays))


def _given_files(image: str, settings: PhotoSettings) -> dict[str, tuple[str, str]]:
  """Returns {stem of the copy in the run's folder: (setting, the user's file or "")}."""
  given = {"original": ("image", image), "depth": ("picture.depth", settings.depth),
           "normals": ("picture.normals", settings.normals)}
  return {stem: (setting, os.path.expanduser(path)) for stem, (setting, path) in given.items()}


def copies(image: str, settings: PhotoSettings) -> dict[str, str]:
  """Returns {"original", "depth" or "normals": name of the copy in the run's folder, or ""}."""
  given = _given_files(image, settings)
  # In lower case, like all names of a layout.
  return {stem: path and stem + Path(path).suffix.lower() for stem, (_, path) in given.items()}


def files_to_keep(image: str, settings: PhotoSettings, folder: Path) -> dict[str, str]:
  """Returns {setting: file of the user}.

  Files that are the run's own copies of themselves are left out.
  """
  kept = copies(image, settings)
  return {setting: path for stem, (setting, path) in _given_files(image, settings).items()
          if path and not _is_same(Path(path), folder / kept[stem])}


def _is_same(path: Path, other: Path) -> bool:
  return os.path.lexists(other) and os.path.realpath(path) == os.path.realpath(other)


def stored_copy(folder: Path, about: dict[str, Any], stem: str) -> Path | None:
  """Returns the copy of a user's file in a run's folder, or None.

  The path never leads out of the folder.
  """
  name = about.get(stem)
  if not isinstance(name, str) or not (name == stem or name.startswith(f"{stem}.")) or Path(name).name != name:
    return None
  path = folder / name
  # The name comes from a file that may have been changed, and a link could lead anywhere.
  return path if path.is_file() and not path.is_symlink() else None


def check_same_photo(image: str, settings: PhotoSettings, folder: Path) -> None:
  """Raises ResumeError if a run was made from another photo or other maps."""
  about = files.read_json(folder / ABOUT)
  for stem, (setting, path) in _given_files(image, settings).items():
    before = stored_copy(folder, about, stem)
    # Nothing to compare with: the run did not keep this file, or the copy was deleted.
    if stem not in about or (about[stem] and not before):
      continue
    # By content, because the user's file may have been moved or written again.
    if (before.read_bytes() if before else None) != (Path(path).read_bytes() if path else None):
      raise ResumeError(
          f"config.{setting}={path!r} differs from the file that the checkpoints in {folder} were made from, "
          f"{before or 'which was none'}; give another --workdir, or use --config.resume=never to start anew there")


def keep_photo(image: str, settings: PhotoSettings, photo: photos.Photo, data: PhotoData, folder: Path) -> None:
  """Writes the framed photo and its data into the run's folder.

  The user's files are copied there, too.
  """
  # PNG stores colours not multiplied by opacity; where opacity is 0 the colour is unknown, and white is written.
  opacity = photo.opacity[..., None]
  straight = np.where(opacity > 0, (photo.rgb - 1.0 + opacity) / np.maximum(opacity, 1e-6), 1.0)
  rgba = np.concatenate([np.clip(straight, 0.0, 1.0), opacity], -1)
  images.write_png(rgba, folder / INPUT)
  kept = copies(image, settings)
  for stem, (_, path) in _given_files(image, settings).items():
    if path and not _is_same(Path(path), folder / kept[stem]):
      with files.atomic_path(folder / kept[stem]) as temporary:
        shutil.copyfile(path, temporary)
    for other in folder.glob(f"{stem}.*"):  # copies of an earlier run
      if other.name != kept[stem]:
        run_files.delete(other)
  files.write_json(dict(kept, image=image, elevation=float(data["elevation"]), azimuth=float(data["azimuth"]),
                        frame=photo.frame._asdict()), folder / ABOUT)


def stored_photo(folder: Path) -> tuple[photos.Photo, dict[str, Any]]:
  """Returns the framed photo of a run, and its data.

  Raises:
    WorkdirError: the files are missing.
  """
  about = files.read_json(folder / ABOUT)
  if not about or not (folder / INPUT).exists():
    raise WorkdirError(f"{folder} holds no {INPUT} and {ABOUT}: its run has not begun its steps")
  with Image.open(folder / INPUT) as image:
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255.0
  opacity = rgba[..., 3]
  photo = photos.Photo(rgba[..., :3] * opacity[..., None] + (1.0 - opacity[..., None]), opacity,
                       photos.Frame(**about["frame"]))
  return photo, about
