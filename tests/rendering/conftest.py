"""Turns LLVM's optimizations on: loops over rays and samples run long enough to profit."""
import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def optimized():
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)
