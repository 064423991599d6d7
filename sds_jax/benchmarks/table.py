"""A record of `benchmarks.step` as text."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def format_record(record: dict[str, Any]) -> str:
  """All that `step.measure` found, for reading."""
  sections = [_machine(record), _compile(record), _steps(record), _parts(record)]
  if "peer" in record:
    sections.append((_peer_of_prior if "what" in record["peer"] else _peer)(record["peer"]))
  return "\n\n".join(sections)


def format_memory(report: dict[str, Any]) -> str:
  """The report of `memory.measure`, for reading."""
  lines = [_prior(report), f"the step, compiled in {report['compile_s']:.1f} s for {report['machine']['backend']} "
           f"({report['machine']['device']}); no weights were allocated", "arguments:"]
  rows = [(f"  {name}", _mib(size)) for name, size in report["arguments"].items()]
  if report["xla_memory"] is None:
    return "\n".join([*lines, _aligned(rows), "this backend does not say what else it needs"])
  rows += [(name, _mib(size)) for name, size in report["xla_memory"].items()]
  rows.append(("arguments + outputs - aliases + temporaries + code", _mib(report["total_bytes"])))
  lines.append(_aligned(rows))
  if report["upcast"]:
    lines.append("CPUs have float32 copies of what is bfloat16 among the temporaries: an upper bound for accelerators")
  return "\n".join(lines)


def _machine(record: dict[str, Any]) -> str:
  m = record["machine"]
  versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items() if version)
  size, rate = record["matmul"]["size"], record["matmul"]["flops_per_s"]
  return (f"{_prior(record)}\n"
          f"{m['processor']}, {m['cpus']} CPUs, backend {m['backend']} ({m['device']}), Python {m['python']}\n"
          f"{versions}\nproduct of two {record['matmul']['dtype']} {size} x {size} matrices: {rate / 1e9:.1f} GFLOP/s")


def _prior(record: dict[str, Any]) -> str:
  source = record["prior_source"]
  return f"prior: {source['name']} ({source['folder']})"


def _compile(record: dict[str, Any]) -> str:
  c = record["compile"]
  taken = "" if c["cache_hits"] else " (XLA did not take what it had stored)"
  lines = [f"compiling the step: {c['cold_s']:.1f} s; from the persistent cache: {c['cached_s']:.1f} s{taken}",
           f"peak memory of the process, loading, compiling and stepping: {_mib(record['peak_memory_bytes'])}"]
  if record["peak_device_bytes"]:
    lines.append(f"peak memory of the device: {_mib(record['peak_device_bytes'])}")
  if record["xla_memory"]:
    lines.append("XLA's plan of one step: "
                 + ", ".join(f"{name} {_mib(size)}" for name, size in record["xla_memory"].items()))
    lines.append("of the arguments: "
                 + ", ".join(f"{name} {_mib(size)}" for name, size in record["arguments_memory"].items()))
  return "\n".join(lines)


def _steps(record: dict[str, Any]) -> str:
  rows = [("step", "median", "min", "mean", "a second", "count", "samples wanted / budget")]
  for place, found in record["steps"].items():
    s = found["samples"]
    for mode in ("as_drawn", "albedo", "shaded"):
      if found[mode]["count"]:
        rows.append((f"{place}, {mode.replace('_', ' ')}", *_times(found[mode]),
                     f"{1 / found[mode]['median_s']:.3g}", str(found[mode]["count"]),
                     f"{s['wanted']} / {s['budget']}"))
  return _aligned(rows)


def _parts(record: dict[str, Any]) -> str:
  peak = record["matmul"]["flops_per_s"]
  rows = [("part", "median", "min", "mean", "GFLOP", "GFLOP/s", "share of the product")]
  for name, part in record["parts"].items():
    label = name + (f" (every {part['every']} steps)" if "every" in part else "")
    rows.append((label, *_times(part), *_rates(part, peak)))
  for mode in ("albedo", "shaded"):
    total = step_flops(record["parts"], mode)
    found = [steps[mode] for steps in record["steps"].values() if steps[mode]["count"]]
    if total and found:
      rows.append((f"whole step, {mode}", *_times(found[-1]), *_rates(dict(found[-1], flops=total), peak)))
  return _aligned(rows)


def step_flops(parts: dict[str, Any], mode: str) -> float | None:
  """FLOPs of a step of a mode: rendering and encoding with their gradients, and the prior. None where no such step was
  looked at."""
  render = parts.get(f"render {mode}, forward and backward")
  others = [parts[name]["flops"] for name in ("prior", "encoder, forward and backward") if name in parts]
  return render["flops"] + sum(others) if render else None


def _rates(part: dict[str, Any], peak: float) -> tuple[str, str, str]:
  if not part.get("flops"):
    return "", "", ""
  rate = part["flops"] / part["median_s"]
  return f"{part['flops'] / 1e9:.2f}", f"{rate / 1e9:.1f}", f"{rate / peak:.0%}"


def _peer(found: dict[str, Any]) -> str:
  errors = ", ".join(f"{name} {value:.1e}" for name, value in found["errors"].items())
  rows = [("in turns", "JAX median", "min", "torch median", "min", "torch / JAX")]
  for mode, ratio in found["ratios"].items():
    if ratio is not None:
      ours, theirs = found["jax"][mode], found["torch"][mode]
      rows.append((mode.replace("_", " "), *_times(ours)[:2], *_times(theirs)[:2], f"{ratio:.2f}"))
  notes = [f"PyTorch, {found['threads']} threads; relative errors of torch against JAX: {errors}",
           _aligned(rows), f"peak memory of the PyTorch process: {_mib(found['torch_peak_memory_bytes'])}"]
  return "\n".join(notes)


def _peer_of_prior(found: dict[str, Any]) -> str:
  rows = [("in turns", "median", "min", "mean", "torch / JAX"), ("JAX", *_times(found["jax"]), "")]
  rows += [(f"torch, {mode}", *_times(times), f"{found['ratios'][mode]:.2f}") for mode, times in found["torch"].items()]
  lines = [found["what"], f"PyTorch on {found['device']}, {found['threads']} threads, {found['dtype']}; relative error "
           f"of its gradient against JAX's: {found['error']:.1e}", _aligned(rows)]
  lines += [f"torch, {mode}: left out, {why}" for mode, why in found["skipped"].items()]
  return "\n".join([*lines, f"peak memory of the PyTorch process: {_mib(found['torch_peak_memory_bytes'])}"])


def _times(found: dict[str, Any]) -> tuple[str, str, str]:
  return tuple(f"{1e3 * found[f'{name}_s']:.1f} ms" for name in ("median", "min", "mean"))


def _mib(size: float) -> str:
  return f"{size / 2**20:.1f} MiB"


def _aligned(rows: Iterable[Sequence[str]]) -> str:
  """Rows of equal length as columns, the first to the left and all others to the right."""
  rows = list(rows)
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))] for row in rows)
  return "\n".join("  ".join(line).rstrip() for line in lines)
