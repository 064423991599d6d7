"""Cuts a mesh into charts by xatlas, as a program of its own: `io.texture` calls it.

xatlas may end its process on some meshes, and a run must not end with it. Imports nothing of this package, so that it
starts at once. stdin: an .npz file with vertices, faces, normals, size, padding, area; stdout: one with index, faces,
uv, sides.
"""
from __future__ import annotations

import io
import sys

import numpy as np


def main() -> None:
  """Reads the mesh, and writes its charts."""
  import xatlas  # an extra: `io.texture` imports this file for its path
  given = np.load(io.BytesIO(sys.stdin.buffer.read()))
  atlas = xatlas.Atlas()
  atlas.add_mesh(given["vertices"], given["faces"], given["normals"])
  charting, packing = xatlas.ChartOptions(), xatlas.PackOptions()
  charting.max_chart_area = float(given["area"])
  packing.resolution, packing.padding, packing.bilinear = int(given["size"]), int(given["padding"]), True
  atlas.generate(charting, packing)
  index, faces, uv = atlas[0]
  result = io.BytesIO()
  np.savez(result, index=index, faces=faces, uv=uv, sides=[atlas.width, atlas.height])
  sys.stdout.buffer.write(result.getvalue())


if __name__ == "__main__":
  main()
