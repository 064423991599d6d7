"""Textual inversion (arXiv:2208.01618): reads the vectors of new tokens, and adds them to tokenizers and text encoders.

  layout                   content                        token
  diffusers                {"<token>": [D] or [n, D]}     the key
  web UIs                  {"emb_params": [n, D]}         the file's name without its ending
  web UIs, archives        {"string_to_param": {"*": [n, D]}}   the file's name without its ending
  web UIs, SDXL            {"clip_l": [n, 768], "clip_g": [n, 1280]}   the file's name without its ending

A token of n vectors takes n places in a prompt.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path

import numpy as np
import tokenizers

from sds_jax.priors.loading.added_tokens import LARGEST_VOCABULARY, library_errors
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.finite import check_finite
from sds_jax.priors.loading.lora import find_file
from sds_jax.priors.loading.lora_names import TEXT, TEXT_2
from sds_jax.priors.loading.single_files import describe_tensors
from sds_jax.priors.loading.stored import Change
from sds_jax.priors.loading.tensor_files import FLOATS, Tensor, open_tensors
from sds_jax.priors.loading.tokenizers import CLIPTokenizer
from sds_jax.priors.networks.config_check import shown

FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
"""Names of the file in a folder that diffusers has written."""
TABLE = "text_model.embeddings.token_embedding.weight"
"""Name of the vectors of all tokens in the checkpoint of a CLIP text encoder."""

_OF_FILE = ("emb_params", "*", "string_to_param.*")
"""Names of tensors whose token the file names."""
_NETWORKS = {"clip_l": TEXT, "clip_g": TEXT_2}
"""Names of tensors of a file for two text encoders -> the encoder; the file names the token."""
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "the second encoder of Stable Diffusion XL"}
"""Length of a vector -> whose it is."""
_LARGEST_COUNT, _MOST_VECTORS, _LONGEST = 1000, 1000, 200
"""Upper limits of the tokens in a file, of the vectors of a token, and of the characters of a token."""


@dataclasses.dataclass(frozen=True)
class Embedding:
  """A token of a textual inversion.

  Attributes:
    path: the file.
    token: the text that stands for the vectors in prompts.
    vectors: {text encoder: (name of the tensor, tensor [D] or [n, D])}; n is the same for all encoders.
  """
  path: Path
  token: str
  vectors: Mapping[str, tuple[str, Tensor]]

  @property
  def count(self) -> int:
    """Returns the number of vectors."""
    _, tensor = next(iter(self.vectors.values()))
    return tensor.shape[0] if len(tensor.shape) == 2 else 1


def read_embeddings(path: Path, token: str = "") -> list[Embedding]:
  """Returns the tokens in a file of a textual inversion; reads no vector.

  Args:
    path: the file, or a folder of diffusers.
    token: stands for the file's vectors in prompts; "": the file's key or name does.

  Raises:
    CheckpointError: the file is missing or damaged, or is no textual inversion.
  """
  path = find_file(path, FILES, "a textual inversion")
  tensors = {key: tensor for key, tensor in open_tensors(path).items() if tensor.dtype in FLOATS}
  for key, tensor in tensors.items():
    if len(tensor.shape) not in (1, 2) or 0 in tensor.shape or len(tensor.shape) == 2 and \
        tensor.shape[0] > _MOST_VECTORS or len(tensors) > _LARGEST_COUNT:
      kind, _ = describe_tensors({name: tensor.shape for name, tensor in tensors.items()})
      raise CheckpointError(f"{path} is {kind} and no textual inversion: {key[:200]} is {list(tensor.shape)}, expected "
                            "one vector or the vectors of one token")
  if not tensors:
    raise CheckpointError(f"{path} is no textual inversion: it has no vectors")
  if set(tensors) <= set(_NETWORKS):
    found = [Embedding(path, token or path.stem, {_NETWORKS[key]: (key, tensor) for key, tensor in tensors.items()})]
  elif len(tensors) == 1 and next(iter(tensors)) in _OF_FILE:
    found = [Embedding(path, token or path.stem, {TEXT: item}) for item in tensors.items()]
  else:
    if token and len(tensors) > 1:
      raise CheckpointError(f"{path} has {len(tensors)} tokens ({', '.join(map(shown, list(tensors)[:3]))}), which "
                            f"cannot all be {token!r}: name the file without a token")
    found = [Embedding(path, token or key, {TEXT: (key, tensor)}) for key, tensor in tensors.items()]
  for embedding in found:
    _check_token(embedding)
  return found


def _check_token(embedding: Embedding) -> None:
  """Raises CheckpointError for a token that no prompt can have, or encoders with different numbers of vectors."""
  token, path = embedding.token, embedding.path
  if not 0 < len(token) <= _LONGEST or token != token.strip() or not token.isprintable():
    raise CheckpointError(f"{path}: the token {shown(token)} should have 1 to {_LONGEST} printable characters, without "
                          f"spaces around them; write TOKEN={path} in place of {path}")
  counts = {len(tensor.shape) == 2 and tensor.shape[0] or 1 for _, tensor in embedding.vectors.values()}
  if len(counts) > 1:
    raise CheckpointError(f"{path}: clip_l and clip_g have different numbers of vectors, {sorted(counts)}")


def check_tokens(embeddings: Sequence[Embedding]) -> None:
  """Raises CheckpointError where two embeddings have the same token."""
  first: dict[str, Embedding] = {}
  for embedding in embeddings:
    # The tokenizer ignores case.
    other = first.setdefault(embedding.token.lower(), embedding)
    if other is not embedding:
      raise CheckpointError(f"{embedding.path}: its token {embedding.token!r} is also that of {other.path}; write "
                            f"TOKEN={embedding.path} with another token")


def add_to_tokenizer(tokenizer: CLIPTokenizer, embeddings: Sequence[Embedding], rows: int) -> CLIPTokenizer:
  """Returns a tokenizer that knows the tokens; the tokenizer that is given must not be used any more.

  Args:
    tokenizer: of the text encoder.
    embeddings: whose tokens are added.
    rows: of the text encoder's table of vectors before the new ones; the new tokens have the ids from `rows` on.

  Raises:
    CheckpointError: a token is in the vocabulary already.
  """
  rows_of: dict[int, tuple[int, ...]] = {}
  for embedding in embeddings:
    token, backend = embedding.token, tokenizer.backend
    if backend.token_to_id(token) is not None:
      raise CheckpointError(f"{embedding.path}: its token {token!r} is in the tokenizer's vocabulary already; write "
                            f"TOKEN={embedding.path} with another token, such as <{token.strip('<>')}>")
    if rows + embedding.count > LARGEST_VOCABULARY:
      raise CheckpointError(f"{embedding.path}: more than {LARGEST_VOCABULARY} tokens")
    with library_errors(f"{embedding.path}: the tokenizer cannot add the token {token!r}"):
      # As transformers adds a token: matched in the normalised text, in any case, within words, too.
      backend.add_tokens([tokenizers.AddedToken(token, normalized=True)])
    rows_of[backend.token_to_id(token)] = tuple(range(rows, rows + embedding.count))
    rows += embedding.count
  return dataclasses.replace(tokenizer, rows_of={**tokenizer.rows_of, **rows_of})


def table_change(embeddings: Sequence[Embedding], network: str, shape: tuple[int, ...], label: str) -> Change:
  """Returns the change of a text encoder's table [V, D] that appends the vectors; reads no vector.

  Args:
    embeddings: whose vectors are appended, in order.
    network: TEXT or TEXT_2.
    shape: of the table.
    label: of the network, for messages.

  Raises:
    CheckpointError: a file has no vectors for the text encoder, or vectors of another length.
  """
  for embedding in embeddings:
    if network not in embedding.vectors:
      raise CheckpointError(f"{embedding.path} has no vectors for {label} of the prior: it has "
                            f"{', '.join(key for key, _ in embedding.vectors.values())}; take a textual inversion that "
                            "was trained on the prior's own base model")
    key, tensor = embedding.vectors[network]
    if tensor.shape[-1] != shape[1]:
      theirs, ours = (f" ({_WIDTHS[width]})" if width in _WIDTHS else "" for width in (tensor.shape[-1], shape[1]))
      raise CheckpointError(f"{embedding.path}: {key} has vectors of length {tensor.shape[-1]}{theirs}, and {label} of "
                            f"the prior takes {shape[1]}{ours}; take a textual inversion that was trained on the "
                            "prior's own base model")
  return _Append(tuple((embedding.path, *embedding.vectors[network]) for embedding in embeddings))


@dataclasses.dataclass(frozen=True)
class _Append:
  """A change: appends vectors to a table of vectors."""
  vectors: tuple[tuple[Path, str, Tensor], ...]

  def __call__(self, table: np.ndarray) -> np.ndarray:
    rows = [check_finite(path, key, tensor.read(), np.dtype(np.float32)).reshape(-1, table.shape[1])
            for path, key, tensor in self.vectors]
    return np.concatenate([table, *rows])
