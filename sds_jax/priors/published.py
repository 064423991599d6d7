"""The published priors that have names, and what the config.json files of their networks hold.

The tables collect those of `families.FAMILIES`.
"""
from __future__ import annotations

from collections.abc import Mapping

from sds_jax.priors import families
from sds_jax.priors.base import Config

PRIORS: dict[str, Mapping[str, Config]] = {
  name: prior.configs for family in families.FAMILIES for name, prior in family.published.items()}
"""Name of a published prior -> its components' configurations, by `checkpoint.COMPONENTS`' names, and its scheduler's;
keys that make no difference to the networks are left out."""
