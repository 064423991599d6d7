"""Zero-1-to-3 (arXiv:2303.11328) and Stable-Zero123: latents, conditioned on a photo and a pose.

Folders have `image_encoder/`, `clip_camera_projection/` or `cc_projection/`, and perhaps `feature_extractor/`, in place
of a text encoder and its tokenizer. The configurations of image encoder, autoencoder, projection and scheduler were
read on the pages of the models; that of the U-Net is from the conversion script of such folders (kxhit/zero123-hf).
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any

from sds_jax.priors.assemble import (RandomNetworks, StoredNetworks, check_facts, check_unet, make_prior,
                                     read_scheduler)
from sds_jax.priors.base import Config, Family, Options, Prior, Published, Weights
from sds_jax.priors.families.stable_diffusion import SD1_UNET, SD_SCHEDULER, SD_VAE
from sds_jax.priors.latent_size import chosen_size
from sds_jax.priors.loading import clip_pixels
from sds_jax.priors.loading.checkpoint import COMPONENTS
from sds_jax.priors.loading.hub import Files
from sds_jax.priors.loading.source import Source
from sds_jax.priors.photo import FEATURE_EXTRACTOR, open_photo, pose_convention, random_photo
from sds_jax.priors.spaces import latent_space

ZERO123_UNET: dict[str, Any] = SD1_UNET | dict(sample_size=32, in_channels=8)
"""Its input channels are those of the noisy latents, then those of the photo's latents."""
CLIP_L_VISION: dict[str, Any] = dict(
  hidden_size=1024, intermediate_size=4096, projection_dim=768, num_hidden_layers=24, num_attention_heads=16,
  image_size=224, patch_size=14, hidden_act="quick_gelu")
"""The image encoder, CLIP ViT-L/14's."""
CAMERA_PROJECTION: dict[str, Any] = dict(
  _class_name="CLIPCameraProjection", embedding_dim=768, additional_embeddings=4)

_CONFIGS = dict(unet=ZERO123_UNET, vae=SD_VAE | dict(sample_size=256), image_encoder=CLIP_L_VISION,
                cc_projection=CAMERA_PROJECTION, scheduler=SD_SCHEDULER)

PROJECTIONS = {"Zero123Pipeline": "clip_camera_projection", "Zero1to3StableDiffusionPipeline": "cc_projection"}
"""Pipeline class in model_index.json -> folder of the projection."""
# Each class resizes as the code that its weights were published with.
RESIZE = {"Zero123Pipeline": clip_pixels.antialiased, "Zero1to3StableDiffusionPipeline": clip_pixels.aligned}
"""Pipeline class in model_index.json -> how the photo is resized for CLIP."""


def files(index: Config) -> Files:
  """Returns the files of a folder of either pipeline class."""
  projection = PROJECTIONS[index["_class_name"]]
  return Files({"unet": COMPONENTS["unet"], "vae": COMPONENTS["vae"], "image_encoder": COMPONENTS["image_encoder"],
                projection: COMPONENTS["cc_projection"]}, {"elevation_head": COMPONENTS["elevation_head"]},
               FEATURE_EXTRACTOR)


def open_folder(source: Source, index: Config, options: Options) -> tuple[Prior, Weights]:
  """Opens a folder of either pipeline class; reads no weights."""
  folder, networks = source.folder, StoredNetworks(source.folder, options.dtype, options.variant, options.additions)
  scheduler = read_scheduler(source)
  unet = networks.open("unet")
  vae = networks.open("vae", remat=options.vae_remat)
  size, notes = chosen_size(folder, unet, vae, options.image_size, native=ZERO123_UNET["sample_size"])
  space = latent_space(vae, size)
  check_unet(folder, unet, space, images=2)
  name = PROJECTIONS[index["_class_name"]]
  projection = networks.open("cc_projection", folder=name)
  photo = open_photo(folder, projection, name, pose(index, source), space, options.dtype,
                     RESIZE[index["_class_name"]], space_places={"vae": networks.places["vae"]},
                     patch_tokens=bool(index.get("patch_tokens", False)), variant=options.variant)
  check_facts(folder, (f"the width that {name} gives", projection.out_features, unet.text_dim))
  return make_prior(source, space, unet, scheduler, photo=photo, notes=notes), networks.weights()


def open_random(source: Source, configs: Mapping[str, Config], options: Options) -> tuple[Prior, Weights]:
  """Opens a prior of published shapes with random weights and random features of the photo."""
  networks = RandomNetworks(configs, options.dtype)
  unet = networks.open("unet")
  vae = networks.open("vae", remat=options.vae_remat)
  size, notes = chosen_size(None, unet, vae, options.image_size)
  space = latent_space(vae, size)
  photo = random_photo(networks.open("cc_projection"), pose({}, source), space)
  return make_prior(source, space, unet, configs["scheduler"], photo=photo, notes=notes), networks.weights()


def is_stable_zero123(name: str) -> bool:
  """Returns whether the name of a repository, folder or prior is one of Stable-Zero123's."""
  return re.search("stable[-_]?zero", name, re.IGNORECASE) is not None


def pose(index: Config, source: Source) -> str:
  """Returns one of `photo.POSES`: the fourth number of a pose, as the weights expect it.

  Published folders have no key `pose`. Then the answer is "polar" for a repository, folder or name with "stable-zero"
  in it (`stable_zero`, `stablezero`), and "distance" for others.

  Raises:
    CheckpointError: the key `pose` has another value.
  """
  # Nothing in a published folder tells the conventions apart, so the name has to.
  names = (source.repo, Path(source.name).name, source.folder.resolve().name if source.folder else "")
  return pose_convention(index, source.folder, "polar" if any(map(is_stable_zero123, names)) else "distance")


ZERO123 = Family(
  name="Zero-1-to-3",
  layout="'Zero123Pipeline' and 'Zero1to3StableDiffusionPipeline'",
  matches=lambda index: index.get("_class_name") in PROJECTIONS,
  files=files,
  open=open_folder,
  random=open_random,
  takes_additions=("unet",),
  published={  # kxic/zero123-165000, kxic/zero123-xl and kxic/stable-zero123 have pickles only, as far as known
    "zero123": Published(("bennyguo/zero123-diffusers",), _CONFIGS),
    "zero123-xl": Published(("ashawkey/zero123-xl-diffusers", "bennyguo/zero123-xl-diffusers",
                             "Manojb/zero123-xl-diffusers"), _CONFIGS),
    "stable-zero123": Published(("ashawkey/stable-zero123-diffusers", "Manojb/stable-zero123-diffusers"), _CONFIGS),
  },
  takes_photo=True)
