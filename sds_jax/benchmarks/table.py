"""The records of `benchmarks.step` as text."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def format_record(record: dict[str, Any]) -> str:
  """Returns a record of `step.measure` as text."""
  sections = [_machine(record), _compile(record), _steps(record), _parts(record)]
  if "peer" in record:
    sections.append((_peer_of_prior if "what" in record["peer"] else _peer)(record["peer"]))
  return "\n\n".join(sections)


def format_memory(report: dict[str, Any]) -> str:
  """Returns a report of `memory.measure` as text."""
  lines = [_prior(report), f"the step, compiled in {report['compile_s']:.1f} s for {report['machine']['backend']} "
           f"({report['machine']['device']}); no weights were allocated", "arguments:"]
  rows = [(f"  {name}", _mib(size)) for name, size in report["arguments"].items()]
  if report["xla_memory"] is None:
    return "\n".join([*lines, _aligned(rows), "this backend does not report the rest of its memory"])
  rows += [(name, _mib(size)) for name, size in report["xla_memory"].items()]
  rows.append(("arguments + outputs - aliases + temporaries + code", _mib(report["total_bytes"])))
  lines.append(_aligned(rows))
  if report["upcast"]:
    lines.append("on CPUs the temporaries hold float32 copies of arrays of 16 bits: an upper bound for accelerators")
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
  unused = "" if c["cache_hits"] else " (XLA did not use the stored executable)"
  lines = [f"compiling the step: {c['cold_s']:.1f} s; from the persistent cache: {c['cached_s']:.1f} s{unused}",
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
  for place, measured in record["steps"].items():
    samples = measured["samples"]
    for mode in ("as_drawn", "albedo", "shaded"):
      summary = measured[mode]
      if summary["count"]:
        rows.append((f"{place}, {mode.replace('_', ' ')}", *_times(summary), f"{1 / summary['median_s']:.3g}",
                     str(summary["count"]), f"{samples['wanted']} / {samples['budget']}"))
  return _aligned(rows)


def _parts(record: dict[str, Any]) -> str:
  peak = record["matmul"]["flops_per_s"]
  rows = [("part", "median", "min", "mean", "GFLOP", "GFLOP/s", "share of the product")]
  for name, part in record["parts"].items():
    label = name + (f" (every {part['every']} steps)" if "every" in part else "")
    rows.append((label, *_times(part), *_rates(part, peak)))
  for mode in ("albedo", "shaded"):
    total = step_flops(record["parts"], mode)
    summaries = [steps[mode] for steps in record["steps"].values() if steps[mode]["count"]]
    if total and summaries:
      rows.append((f"whole step, {mode}", *_times(summaries[-1]), *_rates(dict(summaries[-1], flops=total), peak)))
  return _aligned(rows)


def step_flops(parts: dict[str, Any], mode: str) -> float | None:
  """Returns the FLOPs of a step of a mode.

  The FLOPs are those of rendering and encoding with their gradients, and of the prior. The result is None where the
  mode was not measured.
  """
  render = parts.get(f"render {mode}, forward and backward")
  others = [parts[name]["flops"] for name in ("prior", "encoder, forward and backward") if name in parts]
  return render["flops"] + sum(others) if render else None


def _rates(part: dict[str, Any], peak: float) -> tuple[str, str, str]:
  if not part.get("flops"):
    return "", "", ""
  rate = part["flops"] / part["median_s"]
  return f"{part['flops'] / 1e9:.2f}", f"{rate / 1e9:.1f}", f"{rate / peak:.0%}"


def _peer(comparison: dict[str, Any]) -> str:
  errors = ", ".join(f"{name} {value:.1e}" for name, value in comparison["errors"].items())
  rows = [("in turns", "JAX median", "min", "torch median", "min", "torch / JAX")]
  for mode, ratio in comparison["ratios"].items():
    if ratio is not None:
      jax_times, torch_times = comparison["jax"][mode], comparison["torch"][mode]
      rows.append((mode.replace("_", " "), *_times(jax_times)[:2], *_times(torch_times)[:2], f"{ratio:.2f}"))
  notes = [f"PyTorch, {comparison['threads']} threads; relative errors of torch against JAX: {errors}",
           _aligned(rows), f"peak memory of the PyTorch process: {_mib(comparison['torch_peak_memory_bytes'])}"]
  return "\n".join(notes)


def _peer_of_prior(comparison: dict[str, Any]) -> str:
  rows = [("in turns", "median", "min", "mean", "torch / JAX"), ("JAX", *_times(comparison["jax"]), "")]
  rows += [(f"torch, {mode}", *_times(times), f"{comparison['ratios'][mode]:.2f}")
           for mode, times in comparison["torch"].items()]
  lines = [comparison["what"],
           f"PyTorch on {comparison['device']}, {comparison['threads']} threads, {comparison['dtype']}; relative error "
           f"of its gradient against JAX's: {comparison['error']:.1e}", _aligned(rows)]
  lines += [f"torch, {mode}: left out, {why}" for mode, why in comparison["skipped"].items()]
  return "\n".join([*lines, f"peak memory of the PyTorch process: {_mib(comparison['torch_peak_memory_bytes'])}"])


def _times(summary: dict[str, Any]) -> tuple[str, str, str]:
  return tuple(f"{1e3 * summary[f'{name}_s']:.1f} ms" for name in ("median", "min", "mean"))


def _mib(size: float) -> str:
  return f"{size / 2**20:.1f} MiB"


def _aligned(rows: Iterable[Sequence[str]]) -> str:
  """Returns rows of equal length as columns.

  The first column is flush left, all others are flush right.
  """
  rows = list(rows)
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))] for row in rows)
  return "\n".join("  ".join(line).rstrip() for line in lines)
