"""Compiler options for U-Nets are accepted by the installed XLA and change no result; freed memory is kept on CPUs."""
import jax
import numpy as np

from sds_jax import compilation


def conv(x, w):
  return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_options_are_accepted_and_change_no_result():
  options = compilation.unet_options()
  x, w = jax.random.normal(jax.random.key(0), (2, 8, 8, 4)), jax.random.normal(jax.random.key(1), (3, 3, 4, 6))
  got = jax.jit(conv, compiler_options=options)(x, w)
  np.testing.assert_allclose(got, jax.jit(conv)(x, w), atol=1e-5)


def test_an_option_unknown_to_xla_is_dropped(monkeypatch):
  def refuse(*args, **kwargs):
    raise RuntimeError("No such compile option")

  monkeypatch.setattr(jax, "jit", refuse)
  assert compilation.unet_options() is None


def test_only_cpus_have_options(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert compilation.unet_options() is None


def test_freed_memory_is_kept_on_cpus_only(monkeypatch):
  calls = []
  monkeypatch.setattr(compilation.ctypes, "CDLL", lambda name: calls.append(name) or type(
    "Library", (), dict(mallopt=staticmethod(lambda option, value: calls.append((option, value)))))())
  monkeypatch.setattr(compilation.platform, "libc_ver", lambda: ("glibc", "2.36"))
  compilation.keep_memory()
  assert calls[0] is None and (-4, 0) in calls
  calls.clear()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  compilation.keep_memory()
  assert not calls
