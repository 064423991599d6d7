r"""Training images of ShapeWorld: random scenes, cameras, lights and backgrounds, with captions.

    python -m sds_jax.shapeworld.dataset --num=20000 --seed=0 --out=images.npz

Cameras and lights come from the distributions of a text-to-3D run (`sds_jax.views`), so the prior learns from the views
of its later use. An example depends on (seed, index) only.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from sds_jax import terminal
from sds_jax.prng import seeded_key
from sds_jax.shapeworld import captions, flag_types, scenes, tracer
from sds_jax.shapeworld.scenes import SolidScene
from sds_jax.types import Array, Camera, PyTree
from sds_jax.views import cameras, lights, prompts

IMAGE_SIZE = 64
STACKED_SHARE = 0.5
"""Share of stacked objects."""
# With equal frequencies a trained prior drew these kinds badly.
KIND_WEIGHTS = {"chair": 3.0, "house": 2.0, "pyramid": 1.5}
"""Kind -> frequency relative to the other kinds."""
VIEW_WORDS_SHARE = 0.6
"""Share of captions with view words."""
ALBEDO_ONLY_SHARE = 0.35
"""Share of images without shading."""
AMBIENT = (0.3, 0.7)
"""Range of the ambient light of a shaded image; the diffuse light is the rest to 1."""
GREY, TINT = (0.35, 1.0), 0.08
"""Range of the background's grey level, and the largest deviation of a channel from the grey level."""
# XLA may round differently in a program of another batch size, and an image must depend on (seed, index) alone.
BATCH = 32
"""Images per call of the compiled renderer."""


class ImageSetup(PyTree):
  """Camera, light and background of an image, without the scene.

  Attributes:
    camera: the jittered camera.
    azimuth, elevation: [] radians, before the jitter.
    light_position: [3] world units.
    ambient, diffuse: [] intensities, sum 1.
    background: [3] in [0, 1].
  """
  camera: Camera
  azimuth: Array
  elevation: Array
  light_position: Array
  ambient: Array
  diffuse: Array
  background: Array


def sample_background(key: Array) -> Array:
  """Draws a background colour [3] in [0, 1].

  The colour is a grey level with a slight tint.

  Consumes `key`.
  """
  key_grey, key_tint = jax.random.split(key)
  grey = jax.random.uniform(key_grey, (1,), minval=GREY[0], maxval=GREY[1])
  return jnp.clip(grey + jax.random.uniform(key_tint, (3,), minval=-TINT, maxval=TINT), 0.0, 1.0)


def sample_image_setup(key: Array) -> ImageSetup:
  """Draws a camera, a light and a background; consumes `key`."""
  key_camera, key_light, key_mode, key_ambient, key_background = jax.random.split(key, 5)
  camera, azimuth, elevation = cameras.sample_camera(key_camera)
  ambient = jax.random.uniform(key_ambient, minval=AMBIENT[0], maxval=AMBIENT[1])
  # Ambient 1 with diffuse 0 shows the albedo without shading.
  ambient = jnp.where(jax.random.bernoulli(key_mode, ALBEDO_ONLY_SHARE), jnp.ones_like(ambient), ambient)
  return ImageSetup(camera, azimuth, elevation, lights.sample_light(key_light, camera.position), ambient, 1.0 - ambient,
                 sample_background(key_background))


@jax.jit
def _render_batch(seed: Array, indices: Array, batch: SolidScene) -> tuple[Array, Array, Array]:
  """Renders scenes [B].

  Returns:
    images [B, H, W, 3] uint8, camera features [B, CAMERA_DIM], view indices [B].
  """
  keys = jax.vmap(lambda index: jax.random.fold_in(seeded_key(seed), index))(indices)
  setups = jax.vmap(sample_image_setup)(keys)

  def render_example(inputs):
    scene, setup = inputs
    image, _ = tracer.render(scene, setup.camera, setup.light_position, setup.ambient, setup.diffuse,
                             setup.background, IMAGE_SIZE)
    return jnp.round(image * 255.0).astype(jnp.uint8)

  views = prompts.view_index(setups.azimuth, setups.elevation)
  # `lax.map`, not `vmap`: a vmapped `lax.switch` would evaluate all solids for every scene.
  return jax.lax.map(render_example, (batch, setups)), cameras.camera_features(setups.camera), views


def _sample_text(seed: int, index: int) -> tuple[captions.Spec, bool]:
  """Draws the spec of an example, and whether to add view words."""
  rng = np.random.default_rng([seed, index])
  # The order of the two draws is part of the data set.
  spec = captions.sample_spec(rng, STACKED_SHARE, held_out=False, weights=KIND_WEIGHTS)
  return spec, bool(rng.random() < VIEW_WORDS_SHARE)


def make_examples(seed: int, indices: Sequence[int]) -> dict[str, np.ndarray]:
  """Renders n examples of the data set `seed`.

  Args:
    seed: of the data set, 0 .. 2^32 - 1.
    indices: n indices of examples.

  Returns:
    images [n, 64, 64, 3] uint8, captions [n] strings, cameras [n, CAMERA_DIM] float32 (`cameras.camera_features`).
  """
  parts = []
  for start in range(0, len(indices), BATCH):
    chunk = list(indices[start:start + BATCH])
    texts = [_sample_text(seed, index) for index in chunk]
    # A short last batch repeats its last example, so that the renderer compiles once.
    padding = BATCH - len(chunk)
    batch = scenes.stack_scenes([scenes.scene_from_spec(spec) for spec, _ in texts + texts[-1:] * padding])
    padded = np.array(chunk + chunk[-1:] * padding, np.uint32)
    images, features, views = jax.device_get(_render_batch(np.uint32(seed), padded, batch))
    caption_texts = [captions.caption(spec, captions.VIEWS[view] if has_view_words else None)
                     for (spec, has_view_words), view in zip(texts, views)]
    parts.append(dict(images=images[:len(chunk)], captions=np.array(caption_texts), cameras=features[:len(chunk)]))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes an .npz file atomically."""
  # The rename is atomic, so a file called `path` is always whole.
  draft = path.with_name(path.name + ".partial")
  with open(draft, "wb") as file:
    np.savez(file, **arrays)
  os.replace(draft, path)


def make_dataset(num: int, seed: int, path: str | os.PathLike, chunk: int = 1000,
                 make: Callable[[int, Sequence[int]], dict[str, np.ndarray]] = make_examples) -> pathlib.Path:
  """Renders `num` examples into an .npz file; returns its path.

  Examples 0 .. num - 1.

  Finished chunks stay in the folder `<path>.chunks` until the file is complete, so a killed run continues after its
  last chunk. The file does not depend on the chunk size. Draws a progress bar.

  Args:
    num: number of examples.
    seed: of the data set.
    path: file to write.
    chunk: examples per chunk.
    make: (seed, indices) -> named arrays with a leading axis; the file holds these arrays.
  """
  path = pathlib.Path(path)
  folder = path.with_name(f"{path.name}.chunks")
  folder.mkdir(parents=True, exist_ok=True)
  files = []
  with tqdm.tqdm(total=num, desc="rendering images", unit="image", mininterval=2.0) as bar:
    for start in range(0, num, chunk):
      stop = min(start + chunk, num)
      files.append(folder / f"seed{seed}_{start}_{stop}.npz")
      if not files[-1].exists():
        _save(files[-1], make(seed, range(start, stop)))
      bar.update(stop - start)
  # All chunks are loaded together, so the whole data set must fit into memory.
  loaded = []
  for file in files:
    with np.load(file) as stored:
      loaded.append({name: stored[name] for name in stored.files})
  _save(path, {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]})
  shutil.rmtree(folder)
  return path


def main() -> None:
  """Runs the command line: renders a data set."""
  parser = argparse.ArgumentParser(description="Render training images of ShapeWorld.")
  parser.add_argument("--num", type=flag_types.positive, default=20_000, help="number of examples")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of the data set")
  parser.add_argument("--out", type=terminal.user_path, default=pathlib.Path("images.npz"), help="file to write")
  args = parser.parse_args()
  print(f"wrote the images to {make_dataset(args.num, args.seed, args.out)}")


if __name__ == "__main__":
  main()
