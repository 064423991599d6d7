"""A realistic finished run (a cone on a cylinder) and a headless Chromium, driven over a debugging pipe."""
import json
import os
import shutil
import subprocess
import tempfile
import time

import numpy as np
import pytest

from sds_jax.io import images, mesh, mesh_files, video
from sds_jax.io.surface import with_vertex_colours

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu-sandbox", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe"]


class Tab:
  """A page in the browser.

  Commands use the DevTools protocol (NUL-ended JSON on file descriptors 3 and 4); events are kept in a list.
  """

  def __init__(self, write_fd, read_fd):
    self.write_fd, self.read_fd, self.number, self.session, self.events, self.rest = write_fd, read_fd, 0, None, [], b""
    self.target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self.session = self.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method, **params):
    self.number += 1
    message = {"id": self.number, "method": method, "params": params}
    if self.session:
      message["sessionId"] = self.session
    os.write(self.write_fd, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._receive()
      if answer.get("id") == self.number:
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]
      if answer.get("sessionId") == self.session:  # drops late events of an earlier page
        self.events.append(answer)

  def close(self):
    self.session = None
    self.call("Target.closeTarget", targetId=self.target)

  def evaluate(self, expression):
    answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")

  def until(self, expression, seconds=20.0):
    """Waits until the JavaScript expression is true; fails with the expression otherwise."""
    end = time.monotonic() + seconds
    while not self.evaluate(expression):
      assert time.monotonic() < end, f"still false after {seconds} s: {expression}; {self.problems()}"
      time.sleep(0.05)

  def problems(self):
    """Returns console errors and warnings, uncaught exceptions, and entries of the browser's log."""
    problems = []
    for event in self.events:
      kind, params = event.get("method"), event.get("params", {})
      logged = kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning")
      if logged or kind == "Runtime.exceptionThrown":
        problems.append(params)
      if kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        # The software driver warns of slow canvas reads; the test reads the canvas, not the page.
        if "GPU stall due to ReadPixels" not in params["entry"]["text"]:
          problems.append(params["entry"])
    return problems

  def requests(self):
    return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

  def _receive(self):
    while b"\0" not in self.rest:
      data = os.read(self.read_fd, 1 << 16)
      assert data, "the browser has gone"
      self.rest += data
    message, self.rest = self.rest.split(b"\0", 1)
    return json.loads(message)


@pytest.fixture(scope="session")
def browser_pipe():
  """Starts a headless Chromium; yields the (write, read) descriptors. Skips without Chromium, but fails in CI."""
  browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
  if browser is None or shutil.which("bash") is None:
    message = "no Chromium found; on Debian: apt-get install chromium"
    pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
  to_read, to_write = os.pipe()
  from_read, from_write = os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    script = f'exec 3<&{to_read} 4>&{from_write}; exec "$@" 2>/dev/null'
    command = ["bash", "-c", script, "bash", browser, *FLAGS, f"--user-data-dir={profile}"]
    with subprocess.Popen(command, pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL) as process:
      os.close(to_read), os.close(from_write)
      yield to_write, from_read
      os.write(to_write, b'{"id": 0, "method": "Browser.close"}\0')
      try:
        process.wait(10)
      except subprocess.TimeoutExpired:
        process.kill()
    os.close(to_write), os.close(from_read)


@pytest.fixture
def tab(browser_pipe):
  """Opens a new page in the browser."""
  page = Tab(*browser_pipe)
  yield page
  page.close()


def cone_on_cylinder(points):
  """Computes density and colours of a green cone on a blue cylinder.

  Density 60 inside; a red sign marks the front (+x).
  """
  x, y, z = points[:, 0], points[:, 1], points[:, 2]
  radius = np.hypot(x, y)
  cylinder = np.maximum(radius - 0.3, np.abs(z + 0.25) - 0.25)
  cone = np.maximum((radius - 0.45 * (0.6 - z) / 0.6) * 0.8, -z)
  density = 60.0 / (1.0 + np.exp(np.clip(150.0 * np.minimum(cylinder, cone), -60.0, 60.0)))
  colours = np.where((z > 0.0)[:, None], [0.16, 0.62, 0.28], [0.17, 0.35, 0.85])
  sign = (np.abs(y) < 0.12) & (np.abs(z + 0.25) < 0.12) & (x > 0.0)
  return density, np.where(sign[:, None], [0.86, 0.2, 0.16], colours)


def render(azimuth, size, elevation=0.3, samples=128):
  """Renders the cone on the cylinder, slowly and orthographically.

  Returns colours [size, size, 3], opacity and depth [size, size].
  """
  ca, sa, ce, se = np.cos(azimuth), np.sin(azimuth), np.cos(elevation), np.sin(elevation)
  right, up, back = np.array([-sa, ca, 0.0]), np.array([-se * ca, -se * sa, ce]), np.array([ce * ca, ce * sa, se])
  u, v = np.meshgrid(np.linspace(-0.8, 0.8, size), np.linspace(0.8, -0.8, size))
  distance = np.linspace(-0.8, 0.8, samples)
  points = u[..., None, None] * right + v[..., None, None] * up - distance[:, None] * back
  density, colours = cone_on_cylinder(points.reshape(-1, 3))
  shape = (size, size, samples)
  alpha = 1.0 - np.exp(-density.reshape(shape) * (distance[1] - distance[0]))
  weights = alpha * np.cumprod(np.concatenate([np.ones((size, size, 1)), 1.0 - alpha[..., :-1]], -1), -1)
  opacity = weights.sum(-1)
  rgb = (weights[..., None] * colours.reshape(*shape, 3)).sum(2) + 1.0 - opacity[..., None]
  return rgb, opacity, (weights * (distance + 2.0)).sum(-1) / np.maximum(opacity, 1e-3)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> dict:
  """Returns the arguments of `write_report` for a realistic run."""
  folder = tmp_path_factory.mktemp("run")
  solid = mesh.extract_mesh(lambda p: cone_on_cylinder(p)[0], lambda p: cone_on_cylinder(p)[1], resolution=48)
  mesh_files.write_mesh(with_vertex_colours(solid), folder)
  frames = np.stack([render(2.0 * np.pi * i / 24, 64, samples=48)[0] for i in range(24)])
  clip = video.write_turntable(frames, folder / "turntable.mp4", fps=8)
  colours, opacities, depths = map(np.stack, zip(*[render(2.0 * np.pi * i / 6, 64, samples=48) for i in range(6)]))
  sheet = images.tile_rows([colours, images.depth_image(depths, opacities)], labels=["colour", "depth"])
  rng, steps = np.random.default_rng(0), np.arange(0, 1000, 5)
  metrics = [{"step": int(s), "grad_norm": float(30.0 * np.exp(-s / 180.0) + 0.4 + 0.1 * rng.random()),
              "opacity": float(0.1 + 0.2 * (1.0 - np.exp(-s / 150.0)) + 0.01 * rng.standard_normal()),
              "steps_per_second": float(3.1 + 0.2 * rng.standard_normal()),
              "loss/orientation": float(0.02 * np.exp(-s / 300.0) + 0.001 * rng.random())} for s in steps]
  return dict(
    folder=folder, prompt="a green cone on top of a blue cylinder", mesh=solid, turntable=clip,
    renders=images.write_png(sheet, folder / "renders.png"), renders_note="six sides", metrics=metrics,
    config={"prompt": "a green cone on top of a blue cylinder", "seed": 0,
            "prior": {"name": "shapeworld", "guidance": 20.0},
            "field": {"kind": "mlp", "width": 64, "bound": 0.8, "blob": {"density": 10.0, "radius": 0.35}},
            "optimiser": {"learning_rate": 0.003, "steps": 1000, "warmup": 50}},
    timings={"compile_s": 41.27, "optimise_s": 322.4, "mesh_s": 3.21, "total_s": 372.9},
    versions={"sds_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.9", "device": "cpu (2 cores)"},
    scores={"silhouette_iou": 0.8731, "colour_error": 0.0419, "janus_rate": 0.0})
