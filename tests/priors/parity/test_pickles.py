"""Files that torch writes are read as torch reads them."""
import collections

import numpy as np
import pytest

from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.tensor_files import open_tensors


def read(path):
  with pytest.warns(UserWarning, match="is a pickle"):
    return {name: tensor.read() for name, tensor in open_tensors(path).items()}


def equal(torch, array, tensor):
  bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
  stored = tensor.detach().contiguous().view(bits).numpy()
  return array.shape == tuple(tensor.shape) and np.array_equal(array.view(stored.dtype), stored)


def test_state_dicts(torch, tmp_path):
  base, generator = torch.randn(4, 6), torch.Generator().manual_seed(0)
  state = {kind: torch.randn(3, 5, generator=generator).to(getattr(torch, kind)) for kind in (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")}
  state |= dict(whole=base, transposed=base.T, strided=base[::2, 1::2], expanded=base[:1].expand(3, 6),
                number=base[0, 0], none=base[:0], parameter=torch.nn.Parameter(base[1]), ids=torch.arange(5),
                flags=base > 0)
  for number, value in enumerate((state, collections.OrderedDict(state), dict(
      state_dict=state, epoch=3, hyper_parameters=dict(lr=1e-4, betas=(0.9, 0.99)), callbacks={object: [None, True]}))):
    torch.save(value, tmp_path / f"{number}.ckpt")
    got = read(tmp_path / f"{number}.ckpt")
    assert set(got) == set(state)
    assert all(equal(torch, got[name].reshape(tuple(tensor.shape)), tensor) for name, tensor in state.items()
               if tensor.ndim), number
    assert got["number"] == state["number"].numpy()


def test_a_module_and_its_state(torch, tmp_path):
  """A whole module is refused, and its state is read with the buffers."""
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  torch.save(module, tmp_path / "module.pt")
  with pytest.raises(CheckpointError, match="has no mapping from names to tensors.*state_dict"):
    open_tensors(tmp_path / "module.pt")
  torch.save(module.state_dict(), tmp_path / "state.pt")
  got = read(tmp_path / "state.pt")
  assert set(got) == set(module.state_dict())
  assert all(np.array_equal(got[name], tensor.numpy()) for name, tensor in module.state_dict().items())


def test_the_old_format(torch, tmp_path):
  torch.save(dict(a=torch.ones(2)), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
  with pytest.raises(CheckpointError, match="is a pickle of torch before 1.6"):
    open_tensors(tmp_path / "old.pt")
