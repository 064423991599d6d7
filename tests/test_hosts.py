"""A platform that is asked for and not there, and a guard on transfers that the user has set."""
import jax
import pytest

from sds_jax import hosts


@pytest.mark.parametrize("platforms, error, parts", [
  ("cuda", AssertionError(), ("the platform cuda", "it is not installed", "pip install -U 'jax[cuda12]'")),
  ("gpu", RuntimeError("Unknown backend"), ("Unknown backend", "jax[cuda12]")),
  ("tpu", RuntimeError("Failed to open\nlibtpu.so"), ("Failed to open libtpu.so", "pip install -U 'jax[tpu]'")),
  ("tpu,cpu", RuntimeError("no"), ("jax[tpu]",)), ("nonsense", RuntimeError("not known"), ("nonsense", "not known"))])
def test_a_platform_that_is_not_there(monkeypatch, platforms, error, parts):
  def devices():
    raise error

  before = jax.config.jax_platforms
  monkeypatch.setattr(jax, "devices", devices)
  try:
    jax.config.update("jax_platforms", platforms)
    with pytest.raises(hosts.HostError) as caught:
      hosts.check_platform()
  finally:
    jax.config.update("jax_platforms", before)
  message = str(caught.value)
  assert all(part in message for part in (*parts, "JAX_PLATFORMS=cpu")) and "\n" not in message, message
  assert platforms != "nonsense" or "pip install" not in message


def test_a_platform_that_is_there():
  hosts.check_platform()


@pytest.mark.parametrize("name", ["jax_transfer_guard", "jax_transfer_guard_host_to_device"])
@pytest.mark.parametrize("level, expected", [("disallow", "allow"), ("disallow_explicit", "allow"), ("log", "log")])
def test_guards_are_lifted_and_numbers_have_32_bits(name, level, expected):
  before = getattr(jax.config, name)
  try:
    jax.config.update(name, level)
    hosts.configure()
    assert getattr(jax.config, name) == expected and not jax.config.jax_enable_x64
  finally:
    jax.config.update(name, before)
