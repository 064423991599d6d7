"""PyTorch, diffusers and transformers as oracles; their tests are skipped where these are not installed."""
import resource
import sys
import time
import warnings

import numpy as np
import pytest

HINT = "needs the oracles: pip install 'sds_jax[parity]' (torch from its CPU index keeps that small)"


def oracle(module):
  """An oracle's module, imported without the warnings of its own making."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip(module, reason=f"{module} is not installed; {HINT}", exc_type=ImportError)


@pytest.fixture(scope="session")
def torch():
  module = oracle("torch")
  module.manual_seed(0)
  return module


@pytest.fixture(scope="session")
def diffusers(torch):
  module = oracle("diffusers")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    module.UNet2DConditionModel  # imported lazily, with warnings
  module.utils.logging.set_verbosity_error()
  return module


@pytest.fixture(scope="session")
def transformers(torch):
  module = oracle("transformers")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    module.CLIPTextModel
  module.utils.logging.set_verbosity_error()
  return module


@pytest.fixture(scope="session")
def sentencepiece():
  return oracle("sentencepiece")


@pytest.fixture(scope="module", autouse=True)
def seeded():
  """Seeds the generator of torch's first weights, so that the weights of a file depend on no other file."""
  if "torch" in sys.modules:
    sys.modules["torch"].manual_seed(0)


def randomize(torch, model, seed=0):
  """Adds noise to all parameters, so that no zero bias or unit scale hides a mistake; returns the model."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
  return model.eval()


def relative_error(got, expected):
  """Largest difference in units of the largest value."""
  got, expected = (np.asarray(array, np.float64) for array in (got, expected))
  assert got.shape == expected.shape
  return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.fixture(name="randomize", scope="session")
def randomize_fixture():
  return randomize


@pytest.fixture(name="relative_error", scope="session")
def relative_error_fixture():
  return relative_error


@pytest.fixture
def figures(request):
  """(what, got, expected) -> ||got - expected|| / ||expected||, printed with largest difference, time and memory."""
  start = time.time()

  def compare(what, got, expected):
    got, expected = (np.asarray(array, np.float64) for array in (got, expected))
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{request.node.name} {what}: relative error {error:.2e}, largest difference / largest value "
          f"{relative_error(got, expected):.2e}, after {time.time() - start:.0f} s, process peaked at {peak:.1f} GiB",
          flush=True)
    return error

  return compare
