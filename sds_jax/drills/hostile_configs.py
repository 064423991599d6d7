"""Files of settings with mistakes, or with unusual but legal code, for the fuzz drill."""
from __future__ import annotations

import random
from pathlib import Path

_VALUES = (
    "None", "-1", "True", "'x'", "b'x'", "[]", "{}", "()", "float('nan')", "float('inf')", "10**400", "1j",
    "object()", "lambda: 1", "np.float32(0.1)", "np.float64(0.1)", "np.int64(3)", "np.int32(-1)", "np.bool_(True)",
    "np.array(1.0)", "np.array([0.1, 0.2])", "np.array([[0.0, 1.0], [1.0, 0.5]])", "jnp.float32(1)",
    "pathlib.Path('x')", "[0.1, 0.2]", "[[0.0, 0.1], [1.0, 0.2]]", "((0, 1), (1, 'x'))", "ConfigDict()",
    "config.copy_and_resolve_references()", "config", "placeholder(int)", "placeholder(float, required=True)",
    "config_dict.FieldReference(3)", "config_dict.FieldReference('a red cube')", "'\\ud800'", "'\\0'", "'x' * 20_000",
    "range(3)", "{1, 2}", "print", "...", "decimal.Decimal('0.1')", "fractions.Fraction(1, 3)",
    "type('Text', (str,), {})('a red cube')", "enum.IntEnum('Number', 'one').one")
_NAMES = (
    "prompt", "seed", "training.steps", "training.views", "optimizer.learning_rate", "distillation.guidance_scale",
    "distillation.estimator", "distillation.t_min", "loss.sds", "prior", "prior.path", "prior.name", "distillation",
    "job", "workdir", "resume", "distillation.sds", "training", "parallel.devices", "distillation.weighting",
    "generator.name")
_STATEMENTS = (
    "del config.prompt", "del config.prior", "del config.prior.name", "config.unknown = 1",
    "config.prior.unknown = 1", "config['a.b'] = 1", "config[''] = 1", "config.lock()",
    "config = config_dict.FrozenConfigDict(config)", "config = dict(config)", "config = None",
    "config = settings.TREES['text3d']()", "config = [config]", "config.clear()",
    "config.update(training=dict(steps=1))", "config.update({'training': 3})", "config.training = dict(steps=1)",
    "config.prompt = config.get_ref('negative_prompt')", "config.negative_prompt = config.get_ref('prompt')",
    "config = ConfigDict(config)", "config.training.steps *= 1",
    "config.training.steps = config.training.get_ref('views') * 1", "sys.exit()", "sys.exit(0)", "sys.exit('text')",
    "os._exit", "raise GeneratorExit", "raise RecursionError", "raise ValueError('two\\nlines')", "raise Exception",
    "raise OSError(2, 'x', 'y')", "1 / 0", "assert False", "print('\\ud800')", "print('\\u202e', file=sys.stderr)",
    "warnings.warn('x')", "sys.setrecursionlimit(10**4)", "os.environ.clear()", "sys.argv.clear()",
    "sys.path.clear()", "import no_such_module", "config.recursion = config", "def f(): f()\n  f()",
    "logging.getLogger().error('x')", "jax.config.update('jax_enable_x64', True)", "pass")
_FILES = (
    b"", b"\0", b"\xff\xfe", b"def get_config(:\n", b"get_config = 3\n", b"def get_config(a, b): pass\n",
    b"async def get_config(): pass\n", b"def get_config(): yield\n", b"class get_config: pass\n",
    b"import sys; sys.exit()\n", b"# -*- coding: nothing -*-\n", b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
    b"x = '\xe9'\n", b"(" * 5000, b"raise SystemExit(0)\n", b"from sds_jax.training import config\n",
    b"import sds_jax.nothing\n", b"1 / 0\n", b"\tx\n  y\n",
    b"\xef\xbb\xbfdef get_config():\n  from sds_jax import settings\n  return settings.defaults('text3d')\n")


def write(path: Path, job: str, rng: random.Random) -> None:
  """Writes a file of settings.

  Args:
    path: of the file.
    job: value of the setting `job`.
    rng: chooses the mistake.
  """
  if rng.random() < 0.2:
    path.write_bytes(rng.choice(_FILES))
    return
  line = rng.choice(_STATEMENTS) if rng.random() < 0.5 else f"config.{rng.choice(_NAMES)} = {rng.choice(_VALUES)}"
  unlocked = rng.choice(["", "", "config.unlock()"])
  path.write_text("\n".join([
      "import decimal, enum, fractions, logging, os, pathlib, sys, warnings", "import jax", "import jax.numpy as jnp",
      "import numpy as np", "from ml_collections import ConfigDict, config_dict",
      "from ml_collections.config_dict import placeholder", "from sds_jax import settings", "",
      "def get_config(words=''):", f"  config = settings.defaults({job!r})", f"  {unlocked or 'pass'}", f"  {line}",
      "  return config", ""]), encoding="utf-8")
