"""The files of CLIP's tokenizer, which ships with the package, so that a single-file checkpoint is enough.

The merges are those of the reference implementation (arXiv:2103.00020); `clip_merges.LICENSE` has their licence.
"""
from __future__ import annotations

import gzip
from importlib import resources
import json

START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer_files(pad_token: str = END) -> dict[str, bytes]:
  """Returns {name: content} of the files in a `tokenizer/` folder of CLIP.

  Args:
    pad_token: the token behind the end of a text: END in Stable Diffusion 1.x, "!" in 2.x and in SDXL's second encoder.
  """
  merges = gzip.decompress((resources.files("sds_jax.priors.loading") / "clip_merges.txt.gz").read_bytes())
  config = dict(tokenizer_class="CLIPTokenizer", model_max_length=77, do_lower_case=True, add_prefix_space=False,
                bos_token=START, eos_token=END, unk_token=END, pad_token=pad_token)
  special = dict(bos_token=START, eos_token=END, unk_token=END, pad_token=pad_token)
  return {"merges.txt": merges, "vocab.json": _json(_vocabulary(merges.decode())),
          "tokenizer_config.json": _json(config), "special_tokens_map.json": _json(special)}


def _json(value: object) -> bytes:
  return json.dumps(value, ensure_ascii=False).encode()


def _vocabulary(merges: str) -> dict[str, int]:
  """Returns {token: number}: a character for each byte, alone and at the end of a word, the merges, start and end."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  # Bytes that are no printable characters stand at 256 and above.
  letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
  pairs = [line.replace(" ", "") for line in merges.split("\n")[1:] if line]
  tokens = [*letters, *(letter + "</w>" for letter in letters), *pairs, START, END]
  return {token: number for number, token in enumerate(tokens)}
