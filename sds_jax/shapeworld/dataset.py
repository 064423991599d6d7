r"""Training images of ShapeWorld: random scenes, cameras, lights and backgrounds, with captions.

    python -m sds_jax.shapeworld.dataset --num=20000 --seed=0 --out=images.npz

Cameras and lights come from the distributions that the trainer of objects draws from (`sds_jax.views`), so that the
prior knows what it will be shown. An example depends on (seed, index) only.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import os
import pathlib
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from sds_jax.shapeworld import captions, flag_types, scenes, tracer
from sds_jax.shapeworld.scenes import SolidScene
from sds_jax.types import Array, Camera
from sds_jax.views import cameras, lights, prompts

IMAGE_SIZE = 64
TWO_PARTS = 0.5
"""Share of stacked objects."""
WEIGHTS = {"chair": 3.0, "house": 2.0, "pyramid": 1.5}
"""How much more often than others the kinds are shown that a prior of equal shares drew badly."""
VIEW_WORDS = 0.6
"""Share of captions that say from where the object is seen."""
ALBEDO_ONLY = 0.35
"""Share of images without shading."""
AMBIENT = (0.3, 0.7)
"""Range of the ambient light of a shaded image; the diffuse light is the rest to 1."""
GREY, TINT = (0.35, 1.0), 0.08
"""Range of the background's grey level, and how far each of its channels may leave it."""
BATCH = 32
"""Images a call of the compiled renderer makes; fixed, so that an image does not depend on its neighbours."""


@flax.struct.dataclass
class ImageSetup:
  """All of an image but its scene: camera, angles (radians, before jitter), light position [3], intensities [], [3]."""
  camera: Camera
  azimuth: Array
  elevation: Array
  light_position: Array
  ambient: Array
  diffuse: Array
  background: Array


def sample_background(key: Array) -> Array:
  """A plain background colour [3]: a grey level with a slight tint, within [0, 1]. Consumes `key`."""
  key_grey, key_tint = jax.random.split(key)
  grey = jax.random.uniform(key_grey, (1,), minval=GREY[0], maxval=GREY[1])
  return jnp.clip(grey + jax.random.uniform(key_tint, (3,), minval=-TINT, maxval=TINT), 0.0, 1.0)


def sample_image_setup(key: Array) -> ImageSetup:
  """A random camera, light and background; consumes `key` (an example's own)."""
  key_camera, key_light, key_mode, key_ambient, key_background = jax.random.split(key, 5)
  camera, azimuth, elevation = cameras.sample_camera(key_camera)
  ambient = jax.random.uniform(key_ambient, minval=AMBIENT[0], maxval=AMBIENT[1])
  ambient = jnp.where(jax.random.bernoulli(key_mode, ALBEDO_ONLY), jnp.ones_like(ambient), ambient)
  return ImageSetup(camera, azimuth, elevation, lights.sample_light(key_light, camera.position), ambient, 1.0 - ambient,
                 sample_background(key_background))


@jax.jit
def _render_batch(seed: Array, indices: Array, batch: SolidScene) -> tuple[Array, Array, Array]:
  """Images [B, H, W, 3] uint8, camera features [B, CAMERA_DIM] and view indices [B] of scenes [B]."""
  keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)
  settings = jax.vmap(sample_image_setup)(keys)

  def one(inputs):
    scene, setting = inputs
    image, _ = tracer.render(scene, setting.camera, setting.light_position, setting.ambient, setting.diffuse,
                             setting.background, IMAGE_SIZE)
    return jnp.round(image * 255.0).astype(jnp.uint8)

  views = prompts.view_index(settings.azimuth, settings.elevation)
  return jax.lax.map(one, (batch, settings)), cameras.camera_features(settings.camera), views


def _sample_text(seed: int, index: int) -> tuple[captions.Spec, bool]:
  """What example `index` shows, and whether its caption has view words."""
  rng = np.random.default_rng([seed, index])
  return captions.sample_spec(rng, TWO_PARTS, held_out=False, weights=WEIGHTS), bool(rng.random() < VIEW_WORDS)


def make_examples(seed: int, indices: Sequence[int]) -> dict[str, np.ndarray]:
  """Examples number `indices` (n of them) of the data set `seed`.

  Returns:
    images [n, 64, 64, 3] uint8, captions [n] strings, cameras [n, CAMERA_DIM] float32 (`cameras.camera_features`).
  """
  parts = []
  for start in range(0, len(indices), BATCH):
    some = list(indices[start:start + BATCH])
    texts = [_sample_text(seed, index) for index in some]
    padding = BATCH - len(some)
    batch = scenes.stack_scenes([scenes.scene_from_spec(spec) for spec, _ in texts + texts[-1:] * padding])
    padded = np.array(some + some[-1:] * padding, np.uint32)
    images, features, views = jax.device_get(_render_batch(np.uint32(seed), padded, batch))
    words = [captions.caption(spec, captions.VIEWS[view] if told else None)
             for (spec, told), view in zip(texts, views)]
    parts.append(dict(images=images[:len(some)], captions=np.array(words), cameras=features[:len(some)]))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sample_example(seed: int, index: int) -> tuple[np.ndarray, str, np.ndarray]:
  """Example `index` of the data set `seed`: image [64, 64, 3] uint8, caption, camera features [CAMERA_DIM]."""
  example = make_examples(seed, [index])
  return example["images"][0], str(example["captions"][0]), example["cameras"][0]


def _save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes an .npz under another name first, so that a file called `path` is always whole."""
  draft = path.with_name(path.name + ".partial")
  with open(draft, "wb") as file:
    np.savez(file, **arrays)
  os.replace(draft, path)


def make_dataset(num: int, seed: int, path: str | os.PathLike, chunk: int = 1000,
                 make: Callable[[int, Sequence[int]], dict[str, np.ndarray]] = make_examples) -> pathlib.Path:
  """Renders examples 0 .. num - 1 of data set `seed` into an .npz file, which holds what `make` returns.

  Chunks of `chunk` examples lie in the folder `<path>.chunks` until all are there, so a killed run goes on where it
  was; the file does not depend on the chunk size. Draws a progress bar.
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
  loaded = []
  for file in files:
    with np.load(file) as stored:
      loaded.append({name: stored[name] for name in stored.files})
  _save(path, {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]})
  shutil.rmtree(folder)
  return path


def main() -> None:
  """Command line: renders a data set."""
  parser = argparse.ArgumentParser(description="Render training images of ShapeWorld.")
  parser.add_argument("--num", type=flag_types.positive, default=20_000, help="number of examples")
  parser.add_argument("--seed", type=flag_types.seed, default=0, help="seed of the data set")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("images.npz"), help="file to write")
  args = parser.parse_args()
  print(f"the images lie in {make_dataset(args.num, args.seed, args.out)}")


if __name__ == "__main__":
  main()
