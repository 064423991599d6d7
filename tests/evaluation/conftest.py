"""Programs of these tests run once each: compiled without LLVM's optimizations."""
import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_compiles():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
