"""Former names of `photo`, for callers that still use them."""
from __future__ import annotations

from sds_jax.priors.photo import PhotoFeatures as Seen
from sds_jax.priors.photo import null_condition as null

__all__ = ["Seen", "null"]
