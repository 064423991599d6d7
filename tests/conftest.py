"""A strict session: 8 virtual CPU devices, no silent dtype or rank promotion, warnings are errors (pyproject.toml)."""
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
