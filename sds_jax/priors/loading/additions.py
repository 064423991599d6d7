"""What a user adds to a prior: LoRAs and textual inversions, read once and applied to each network as it is opened."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn

from sds_jax.priors.loading import embeddings as embeddings_lib
from sds_jax.priors.loading import names
from sds_jax.priors.loading.checkpoint import abstract_params
from sds_jax.priors.loading.embeddings import Embedding
from sds_jax.priors.loading.file_digest import file_digest
from sds_jax.priors.loading.file_lists import parse_embeddings, parse_loras
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.loading.lora import LABELS, Lora, merge, read_lora
from sds_jax.priors.loading.lora_names import UNET
from sds_jax.priors.loading.stored import Stored
from sds_jax.priors.loading.tokenizers import CLIPTokenizer

Places = Mapping[names.Path, Stored]


@dataclasses.dataclass(frozen=True)
class Additions:
  """The LoRAs and the textual inversions of a prior.

  Attributes:
    loras: merged in this order.
    embeddings: new tokens, in the order of their ids.
  """
  loras: tuple[Lora, ...] = ()
  embeddings: tuple[Embedding, ...] = ()

  def check(self, networks: Sequence[str], prior: str) -> None:
    """Raises CheckpointError for an addition to a network that the prior lacks, so that none is ignored.

    Args:
      networks: names of the networks that the prior's family passes to `merged`.
      prior: names the prior and its family, for the message.
    """
    for path, network, key in self._changes():
      if network not in networks:
        raise CheckpointError(f"{path} changes {LABELS[network]} ({key[:200]}), and {prior} has none that takes "
                              "additions; " + (f"it takes additions to {', '.join(map(LABELS.get, networks))} only"
                                               if networks else "it takes no LoRA and no textual inversion"))

  def _changes(self) -> Iterator[tuple[Path, str, str]]:
    """Yields (file, network that the file changes, name of a tensor)."""
    for lora in self.loras:
      for network, layers in lora.layers.items():
        yield lora.path, network, next(iter(layers.values())).key
    for embedding in self.embeddings:
      for network, (key, _) in embedding.vectors.items():
        yield embedding.path, network, key

  def merged(self, network: str, model: nn.Module, places: Places, table: names.NameTable) -> dict[names.Path, Stored]:
    """Returns the places of a network's parameters, with the changes by the LoRAs.

    Args:
      network: name of the network in LoRA files: "unet", "text_encoder" or "text_encoder_2".
      model: the network.
      places: {Flax path: where the parameter is stored}; {} before the weights are there (`checkpoint.configs_only`),
        in which case the LoRAs are checked all the same.
      table: of the network's names.

    Raises:
      CheckpointError: a LoRA does not fit the network.
    """
    if not self.loras:
      return dict(places)
    # A U-Net whose files have the names of latent diffusion is known by those of diffusers all the same.
    table = names.UNET if network == UNET else table
    shapes = ({path: stored.shape for path, stored in places.items()} if places else
              {path: names.checkpoint_shape(path, leaf.shape) for path, leaf in abstract_params(model).items()})
    paths = {names.checkpoint_name(path, table): path for path in shapes if path[-1] == "kernel"}
    changes = merge(self.loras, network, {name: shapes[path] for name, path in paths.items()})
    changed = {paths[name]: dataclasses.replace(places[paths[name]], change=change)
               for name, change in changes.items() if places}
    return {**places, **changed}

  def with_tokens(self, network: str, model: nn.Module, places: Places, tokenizer: CLIPTokenizer,
                  table: names.NameTable) -> tuple[nn.Module, dict[names.Path, Stored], CLIPTokenizer]:
    """Returns a CLIP text encoder, its places and its tokenizer, with the new tokens.

    Args:
      network: "text_encoder" or "text_encoder_2".
      model: the text encoder.
      places: {Flax path: where the parameter is stored}.
      tokenizer: of the text encoder; not to be used any more.
      table: of the network's names.

    Raises:
      CheckpointError: a token is in the vocabulary, or a vector does not fit the encoder.
    """
    if not self.embeddings:
      return model, dict(places), tokenizer
    shape = (model.vocab_size, model.hidden_size)
    change = embeddings_lib.table_change(self.embeddings, network, shape, LABELS[network])
    tokenizer = embeddings_lib.add_to_tokenizer(tokenizer, self.embeddings, model.vocab_size)
    rows = sum(embedding.count for embedding in self.embeddings)
    path = next((path for path in places if names.checkpoint_name(path, table) == embeddings_lib.TABLE), None)
    changed = {} if path is None else {path: dataclasses.replace(places[path], change=change)}
    larger: dict[str, Any] = dict(vocab_size=model.vocab_size + rows)
    if getattr(model, "eos_token_id", None) is not None:
      # Published configs have 2 for "the largest id", which new tokens would be: the pooled text is of the end.
      larger["eos_token_id"] = tokenizer.eos
    return model.clone(**larger), {**places, **changed}, tokenizer

  def facts(self, network: str, memory: Path) -> list[Any]:
    """Returns what the outputs of a network depend on beside its own files, as JSON; [] for no addition to it.

    Args:
      network: its name in LoRA files.
      memory: see `file_digest`.
    """
    loras = [["lora", file_digest(lora.path, memory), lora.scale] for lora in self.loras
             if lora.scale and lora.layers.get(network)]
    return loras + [["token", embedding.token, file_digest(embedding.path, memory)] for embedding in self.embeddings]

  def describe(self) -> list[str]:
    """Returns lines for the log."""
    lines = []
    for lora in self.loras:
      layers = ", ".join(f"{len(layers)} layers of {LABELS[network]}" for network, layers in lora.layers.items())
      lines.append(f"LoRA: {lora.path} at scale {lora.scale:g}, {layers}")
    return lines + [f"textual inversion: {embedding.path}, token {embedding.token!r} of {embedding.count} vectors"
                    for embedding in self.embeddings]


NONE = Additions()
"""No addition."""


def read_additions(lora: Any = (), embeddings: Any = ()) -> Additions:
  """Returns the additions that settings list; reads headers, and no weights.

  Args:
    lora: see `file_lists.parse_loras`.
    embeddings: see `file_lists.parse_embeddings`.

  Raises:
    CheckpointError: a file is missing, damaged or of another kind; the message names the file and the tensor.
    ValueError: a list is of no legal form.
  """
  tokens = [embedding for token, path in parse_embeddings(embeddings)
            for embedding in embeddings_lib.read_embeddings(Path(path), token)]
  embeddings_lib.check_tokens(tokens)
  return Additions(tuple(read_lora(Path(path), scale) for path, scale in parse_loras(lora)), tuple(tokens))
