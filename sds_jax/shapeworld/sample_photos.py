r"""Sample photos for image-to-3D: PNG files of ShapeWorld scenes with transparency and their ground truth.

    python -m sds_jax.shapeworld.sample_photos --caption="a red house" --azimuth_deg=30 --seed=5 --out=house.png
    python -m sds_jax.shapeworld.sample_photos --num=12 --seed=1 --out=photos

Scenes, cameras and lights have the distributions of the training images of the view prior (`view_dataset`) and never
coincide with a training image: the root of all keys is `ROOT_SEED` in place of the seed of a data set. Odd indices show
a colour-kind pair absent from training. A photo depends on the seed, its index and the given caption and angles only.
"""
from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
from pathlib import Path
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, PngImagePlugin

from sds_jax import terminal
from sds_jax.priors.loading.files import parse_json, write_atomically
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import captions, dataset, scenes, tracer, view_dataset
from sds_jax.types import Array, Camera
from sds_jax.views import cameras, poses

ROOT_SEED = 2**31
"""Root of all keys of sample photos; the seeds of training sets are smaller (`flag_types.seed`)."""
SIZES = (16, 1024)
"""Smallest and largest size of a photo, pixels a side."""
PNG_TEXT_KEY = "shapeworld"
"""Key of the PNG text chunk with the ground truth."""
# A longer text is refused before the JSON parser sees any of it.
_LONGEST_TEXT = 4096


class Truth(NamedTuple):
  """The ground truth of a photo, in the frame of the scene.

  The front is at azimuth 0.

  Attributes:
    caption: a caption of the grammar, without view words.
    azimuth_deg, elevation_deg: position of the camera, at poses.DISTANCE with poses.FOV_Y, looking at the origin.
    light: position of the light, world units.
    ambient: intensity of the ambient light in [0, 1]; the intensity of the point light is 1 - ambient.
    size, shift: arguments of `view_dataset.scale_and_shift` for the scene of the caption.
  """
  caption: str
  azimuth_deg: float
  elevation_deg: float
  light: tuple[float, float, float]
  ambient: float
  size: float
  shift: tuple[float, float, float]


def draw_truth(seed: int, index: int = 0, caption: str | None = None, azimuth_deg: float | None = None,
               elevation_deg: float | None = None) -> Truth:
  """Draws the ground truth of a photo.

  Args:
    seed: 0 .. 2^32 - 1.
    index: number of the photo; captions drawn at odd numbers have a colour-kind pair absent from training.
    caption, azimuth_deg, elevation_deg: fixed values; None draws a value.

  Raises:
    CaptionError: the caption is outside the grammar.
    ValueError: the seed or an angle is out of range.
  """
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed} is not in 0..{2**32 - 1}")
  if caption is None:
    # numpy draws captions and JAX draws cameras; neither consumes randomness of the other.
    rng = np.random.default_rng([ROOT_SEED, seed, index])
    spec = captions.sample_spec(rng, dataset.STACKED_SHARE, held_out=index % 2 == 1,
                                weights=view_dataset.KIND_WEIGHTS)
  else:
    spec = captions.Spec(captions.parse(caption).parts)  # the angles replace view words
  for name, value, limit in (("azimuth_deg", azimuth_deg, 360.0), ("elevation_deg", elevation_deg, 90.0)):
    if value is not None and not abs(value) <= limit:
      raise ValueError(f"{name}={value} is not in -{limit:g}..{limit:g} degrees")
  azimuth, elevation, light, ambient, size, shift = jax.device_get(_draw(np.uint32(seed), np.uint32(index)))
  floats = lambda values: tuple(float(value) for value in values)  # noqa: E731
  return Truth(
    caption=captions.caption(spec),
    azimuth_deg=math.degrees(azimuth) if azimuth_deg is None else float(azimuth_deg),
    elevation_deg=math.degrees(elevation) if elevation_deg is None else float(elevation_deg),
    light=floats(light), ambient=float(ambient), size=float(size), shift=floats(shift))


@jax.jit
def _draw(seed: Array, index: Array) -> tuple[Array, ...]:
  """Draws camera, light and placement of a photo.

  Returns:
    azimuth [], elevation [], light [3], ambient [], size [], shift [3].
  """
  # The seed is folded in below `ROOT_SEED`, never a root itself, so no key is a key of a training image.
  key = jax.random.fold_in(jax.random.fold_in(seeded_key(np.uint32(ROOT_SEED)), seed), index)
  key_views, key_light, key_place = jax.random.split(key, 3)
  azimuth, elevation = view_dataset.sample_views(key_views)  # the first view is a photo
  return azimuth[0], elevation[0], *view_dataset.sample_light(key_light), *view_dataset.sample_placement(key_place)


def truth_scene(truth: Truth) -> scenes.SolidScene:
  """Builds the exact scene of a photo."""
  scene = scenes.scene_from_caption(truth.caption)
  return view_dataset.scale_and_shift(scene, np.float32(truth.size), np.array(truth.shift, np.float32))


def photo_camera(truth: Truth) -> Camera:
  """Returns the camera [] of a photo in the scene frame."""
  return cameras.orbit(math.radians(truth.azimuth_deg), math.radians(truth.elevation_deg), poses.DISTANCE, poses.FOV_Y)


class PhotoPose(NamedTuple):
  """The camera and the reframing of the photo in an image-to-3D run.

  The camera looks at the origin.

  Attributes:
    azimuth, elevation: radians.
    distance, fov_y: world units, radians.
    scale, shift: fields of `io.photos.Frame`.
  """
  azimuth: float
  elevation: float
  distance: float = poses.DISTANCE
  fov_y: float = poses.FOV_Y
  scale: float = 1.0
  shift: tuple[float, float] = (0.0, 0.0)


def cameras_to_scene_frame(run_cameras: Camera, truth: Truth, pose: PhotoPose) -> Camera:
  """Transforms cameras [...] of a run into the scene frame.

  A transformed camera sees `truth_scene` as the camera of the run sees a perfect object. The perfect object is the
  scene turned about z. A reframed photo, or a run with another camera than the photo, also scales the object and moves
  the object in the plane through the origin facing the camera. The motion is exact in the plane and first order in
  depth over camera distance elsewhere: nearer parts move more, farther parts less, and perspective shows other sides.
  """
  angle, scale, move = _object_motion(truth, pose)
  position = run_cameras.position
  moved = run_cameras.replace(position=position - jnp.broadcast_to(move, position.shape))
  return cameras.camera_of_turned_object(moved, jnp.float32(angle), jnp.float32(scale))


def points_to_scene_frame(points: np.ndarray, truth: Truth, pose: PhotoPose) -> np.ndarray:
  """Transforms points [N, 3] of a run into the scene frame."""
  angle, scale, move = _object_motion(truth, pose)
  return np.asarray(scenes.rotate_points_z(jnp.asarray(points - move, jnp.float32), -angle)) / np.float32(scale)


def _object_motion(truth: Truth, pose: PhotoPose) -> tuple[float, float, np.ndarray]:
  """Returns the motion from the scene to the object of the run.

  Returns:
    angle about z (radians), scale, shift [3] (world units), applied in this order.
  """
  camera = cameras.orbit(pose.azimuth, pose.elevation, pose.distance, pose.fov_y)
  right, up = np.asarray(camera.rotation)[:, 0], np.asarray(camera.rotation)[:, 1]
  frame = 2.0 * pose.distance * math.tan(pose.fov_y / 2)  # height of the frame at the origin, world units
  scale = pose.scale * frame / (2.0 * poses.DISTANCE * math.tan(poses.FOV_Y / 2))
  # Image rows go down, so a positive vertical shift of the photo moves the object against `up`.
  move = frame * (pose.shift[0] * right - pose.shift[1] * up)
  return pose.azimuth - math.radians(truth.azimuth_deg), scale, move.astype(np.float32)


def render_photo(truth: Truth, size: int) -> np.ndarray:
  """Renders the photo [size, size, 4] uint8: colours, and opacity."""
  rgb, opacity = jax.device_get(_render(truth_scene(truth), photo_camera(truth), jnp.array(truth.light),
                                        jnp.float32(truth.ambient), size))
  # On black, rgb is premultiplied; PNG stores the colour of the object without its opacity.
  colours = np.where(opacity[..., None] > 0, rgb / np.maximum(opacity, 1e-3)[..., None], 0.0)
  return np.rint(np.clip(np.dstack([colours, opacity]), 0.0, 1.0) * 255.0).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=4)
def _render(scene: scenes.SolidScene, camera: Camera, light: Array, ambient: Array, size: int) -> tuple[Array, Array]:
  return tracer.render(scene, camera, light, ambient, 1.0 - ambient, jnp.zeros(3), size)


def write_photo(truth: Truth, size: int, path: str | os.PathLike) -> Path:
  """Writes a photo with its ground truth as a PNG file.

  Returns the path.

  Writes atomically and creates the folder.
  """
  path, pixels = Path(path), render_photo(truth, size)
  info = PngImagePlugin.PngInfo()
  # The digest of the pixels ties the text to the image: programs that crop often keep text chunks.
  info.add_text(PNG_TEXT_KEY, json.dumps(dict(truth._asdict(), pixels=_digest(pixels))))
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info))
  return path


def read_truth(path: str | os.PathLike) -> Truth | None:
  """Reads the ground truth from a file of `write_photo`.

  Returns:
    The truth, or None: for any other file, for a damaged text, for values impossible in `draw_truth`, and for a text of
    other pixels, such as after a crop in a program preserving text chunks.
  """
  try:
    with Image.open(path, formats=["PNG"]) as image:
      # Checked before `load`, so that a hostile header cannot make the decoder allocate a huge image.
      if image.mode != "RGBA" or image.width != image.height or image.width > SIZES[1]:
        return None
      image.load()
      text = image.text.get(PNG_TEXT_KEY, "")
      if not 0 < len(text) <= _LONGEST_TEXT:
        return None
      values = parse_json(text)
      if values.pop("pixels") != _digest(np.asarray(image)):
        return None
      return _validated_truth(values)
  except Exception:  # decoders and hostile texts raise anything; every failure means "not a sample photo"
    return None


def _digest(pixels: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _validated_truth(values: dict[str, Any]) -> Truth:
  """Builds the truth from the JSON object of a text chunk.

  Raises:
    KeyError, TypeError, ValueError: a value is missing, of another type, or impossible in `draw_truth`.
  """
  def number(value: Any, low: float, high: float) -> float:
    # bool is a subclass of int, and NaN fails the comparison.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
      raise ValueError(f"{value!r} is not a number in {low}..{high}")
    return float(value)

  def triple(value: Any, limit: float) -> tuple[float, float, float]:
    x, y, z = value
    return number(x, -limit, limit), number(y, -limit, limit), number(z, -limit, limit)

  canonical = captions.caption(captions.Spec(captions.parse(values["caption"]).parts))
  if set(values) != set(Truth._fields) or values["caption"] != canonical:
    raise ValueError(f"the fields {sorted(values)} or the caption {values['caption']!r} are not from `write_photo`")
  slack = 1e-6  # size and shift were drawn in float32
  return Truth(
    caption=values["caption"],
    azimuth_deg=number(values["azimuth_deg"], -360.0, 360.0),
    elevation_deg=number(values["elevation_deg"], -90.0, 90.0),
    light=triple(values["light"], 10.0), ambient=number(values["ambient"], 0.0, 1.0),
    size=number(values["size"], view_dataset.SIZE[0] - slack, view_dataset.SIZE[1] + slack),
    shift=triple(values["shift"], view_dataset.SHIFT + slack))


def main() -> None:
  """Runs the command line.

  Renders a photo into a file, or several into a folder.
  """
  terminal.show_any_text()
  parser = argparse.ArgumentParser(description="Render sample photos of ShapeWorld, with their ground truth.")
  parser.add_argument("--caption", help="such as \"a red house\"; default: drawn at random")
  parser.add_argument("--azimuth_deg", type=float, help="azimuth of the camera, 0 in front; default: drawn at random")
  parser.add_argument("--elevation_deg", type=float, help="elevation of the camera; default: drawn at random")
  parser.add_argument("--seed", type=int, default=0, help="seed of all drawn values, light and placement included")
  parser.add_argument("--size", type=int, default=256, help="pixels a side")
  parser.add_argument("--num", type=int, help="number of photos, rendered into a folder")
  parser.add_argument("--out", type=terminal.user_path,
                      help="file, or folder with --num; default: picture.png, or pictures")
  args = parser.parse_args()
  if not SIZES[0] <= args.size <= SIZES[1]:
    parser.error(f"--size={args.size} is not in {SIZES[0]}..{SIZES[1]}")
  if args.num is not None and args.num < 1:
    parser.error(f"--num={args.num} must be at least 1")
  out = args.out or Path("picture.png" if args.num is None else "pictures")
  if args.num is None and out.suffix.lower() != ".png":
    parser.error(f"--out={out} must end in .png; a folder is for --num")
  try:
    for index in range(args.num or 1):
      truth = draw_truth(args.seed, index, args.caption, args.azimuth_deg, args.elevation_deg)
      path = write_photo(truth, args.size, out if args.num is None else out / f"{index:03d}.png")
      print(f"{path}: {truth.caption}, azimuth {truth.azimuth_deg:.1f}, elevation {truth.elevation_deg:.1f} degrees")
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
