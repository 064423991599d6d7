"""Loops over rays and samples run long enough for LLVM's optimizations to pay."""
import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def optimized():
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)
