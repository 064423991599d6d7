"""Opening a prior: a frozen diffusion model of images, as data and functions, from a folder in diffusers' format.

The folder's `model_index.json` says which of the families (`families.FAMILIES`) it belongs to.
"""
from __future__ import annotations

from collections.abc import Callable
import dataclasses
import os
from typing import Any

import jax.numpy as jnp

from sds_jax.priors import published
from sds_jax.priors.assemble import check_words as check_words
from sds_jax.priors.assemble import make_prior as make_prior
from sds_jax.priors.assemble import unet_input as unet_input
from sds_jax.priors.base import Cond as Cond
from sds_jax.priors.base import Options, Prior, Weights
from sds_jax.priors.base import PromptError as PromptError
from sds_jax.priors.families import check_controlnet, check_image_size, family_of_published, open_folder
from sds_jax.priors.loading.additions import NONE
from sds_jax.priors.loading.composed import Composed
from sds_jax.priors.loading.files import CheckpointError as CheckpointError
from sds_jax.priors.loading.source import Source
from sds_jax.priors.overrides import with_networks
from sds_jax.priors.sources import find
from sds_jax.types import Params


def build(name_or_path: str | os.PathLike, dtype: Any = jnp.float32, any_words: bool = False,
          vae_remat: bool = False, random_weights: bool = False, **choices: Any) -> tuple[Prior, Params]:
  """Opens a prior and loads its parameters, {network: tree}.

  The networks are `unet`, `vae` of a latent prior, and `cc_projection` of a prior that is conditioned on a photo. All
  files are checked, and the parts compared, before weights are read. The weights of the text encoder are read by
  `Prior.embed`.

  Args:
    name_or_path: "shapeworld" or "shapeworld-views", which are in this package; a published prior by a name of
      `sources.HUB_IDS` or its hub id ("owner/name", perhaps "owner/name@revision"), which is downloaded unless the
      local cache has it; a folder; or a single-file checkpoint.
    dtype: of parameters and of the networks' activations; inputs and outputs of `Prior`'s functions are float32.
    any_words: whether prompts may have words outside the prior's vocabulary.
    vae_remat: whether the gradient through the VAE's encoder recomputes the inside of its blocks: less memory, slower.
    random_weights: whether the networks have random weights, and prompts random embeddings, in place of the published
      ones; no file is read then. Only for a name of `published.PRIORS`.
    **choices: further fields of `base.Options`, such as `variant`, `prediction_type`, `controlnet`, `lora` and
      `embeddings`.

  Raises:
    CheckpointError (a ValueError): the folder or a file in it is missing or wrong, or cannot be downloaded.
    ValueError: a network is of a kind that is not supported, or random weights are asked of a prior without published
      shapes.
  """
  prior, weights = open_prior(name_or_path, dtype, any_words, vae_remat, random_weights, **choices)
  return prior, weights.load()


def open_prior(name_or_path: str | os.PathLike, dtype: Any = jnp.float32, any_words: bool = False,
               vae_remat: bool = False, random_weights: bool = False,
               check: Callable[[Prior], None] = lambda prior: None, **choices: Any) -> tuple[Prior, Weights]:
  """Opens a prior as `build` does, without loading its parameters.

  The shapes of the parameters are known already.

  Args:
    name_or_path, dtype, any_words, vae_remat, random_weights, **choices: as in `build`.
    check: (prior) -> None; raises an error for a prior that does not suit the caller. For a prior that has to be
      downloaded, `check` runs before its weights are fetched.
  """
  name, options = os.fspath(name_or_path), Options(dtype, any_words, vae_remat, **choices)
  # Read now, so that a missing LoRA is reported before anything is fetched.
  if options.additions != NONE and random_weights:
    raise ValueError("random weights take no LoRA and no textual inversion: leave `lora` and `embeddings` empty")
  # `find` calls `check` before it fetches weights; the call below serves folders and random weights.
  opened = _open_random(name, options) if random_weights else _open(name, options, check)
  check(opened[0])
  return opened


def _open(name: str, options: Options, check: Callable[[Prior], None]) -> tuple[Prior, Weights]:
  source = with_networks(find(name, options.dtype, check=check, options=options), options)
  prior, weights = open_folder(source, options)
  notes = source.folder.notes if isinstance(source.folder, Composed) else ()
  return dataclasses.replace(prior, notes=(*prior.notes, *notes)), weights


def _open_random(name: str, options: Options) -> tuple[Prior, Weights]:
  family = family_of_published(name)
  if family is None or family.random is None or name not in published.PRIORS:
    raise ValueError(f"random weights are made for published priors only ({', '.join(published.PRIORS)}), not for "
                     f"{name!r}")
  check_controlnet(family, name, options)
  prior, weights = family.random(Source(name, None), published.PRIORS[name], options)
  check_image_size(family, prior, options)
  return prior, weights
