"""The report page: escaping, contents, and behaviour in a browser."""
import base64
import html.parser
import json
import re
import time

import numpy as np
import pytest

from sds_jax.io import report

HOSTILE = ('</title><script>alert(1)</script><img src=x onerror=alert(2)>"\'&{{data}} {{style}} \ud800 </script>'
           '</style></textarea><!-- ]]>\u2028\u2029\u202e<svg onload=alert(3)>&lt;\x1b[0m\\u003c')


class Page(html.parser.HTMLParser):
  """Collects the tags, and the texts by element."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.texts, self.open = [], {}, None
    self.feed(path.read_text("utf-8"))

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    self.open = tag

  def handle_data(self, data):
    self.texts.setdefault(self.open, []).append(data)


def test_hostile_text_stays_text(tmp_path):
  path = report.write_report(
    tmp_path, HOSTILE, metrics=[{"step": 1, HOSTILE: 2.0}], config={HOSTILE: {HOSTILE: HOSTILE}},
    versions={HOSTILE: HOSTILE}, scores={HOSTILE: HOSTILE}, timings={HOSTILE: 1.0})
  page = Page(path)
  tags = [tag for tag, _ in page.tags]
  assert tags.count("script") == 3 and not {"img", "svg"} & set(tags) and not any("onerror" in a for _, a in page.tags)
  assert page.texts["h1"][0] == HOSTILE.replace("\ud800", "?")
  assert page.texts["script"][0].isascii() and "<" not in page.texts["script"][0]  # no </script>, <!-- or U+2028
  data = json.loads(page.texts["script"][0])
  assert data["curves"][0]["name"] == HOSTILE.replace("/", " · ")


def test_missing_parts_have_no_section(tmp_path):
  page = Page(report.write_report(tmp_path, ""))
  tags = {tag for tag, _ in page.tags}
  assert not tags & {"canvas", "video", "img", "section", "table"} and page.texts["h1"][0] == "(no prompt)"
  assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_gif_and_links_to_files_in_the_folder(tmp_path):
  (tmp_path / "turntable.gif").write_bytes(b"GIF89a...")
  page = Page(report.write_report(tmp_path, "x", turntable=tmp_path / "turntable.gif"))
  sources = [a["src"] for tag, a in page.tags if tag == "img"]
  assert sources == ["data:image/gif;base64," + base64.b64encode(b"GIF89a...").decode()]
  assert [a["href"] for tag, a in page.tags if tag == "a"] == ["turntable.gif"]


def test_curves_are_thinned_and_keep_gaps():
  metrics = [{"step": i, "a": float(i), "b": None if i == 3 else 1.0, "text": "no", "flag": True} for i in range(5)]
  metrics.append({"step": 5, "a": float("nan")})
  assert report.metric_curves(metrics) == [
    {"name": "a", "steps": [0, 1, 2, 3, 4, 5], "values": [0.0, 1.0, 2.0, 3.0, 4.0, None]},
    {"name": "b", "steps": [0, 1, 2, 3, 4], "values": [1.0, 1.0, 1.0, None, 1.0]}]
  curve, = report.metric_curves([{"step": i, "x": i} for i in range(10_000)])
  assert len(curve["steps"]) <= 400 and curve["steps"][0] == 0 and curve["steps"][-1] == 9999


def test_packed_mesh_unpacks_to_the_mesh(finished_run):
  solid, packed = finished_run["mesh"], report.pack_mesh(finished_run["mesh"])

  def unpack(key, dtype):
    return np.frombuffer(base64.b64decode(packed[key]), dtype).reshape(-1, 3)
  low, high = np.array(packed["low"]), np.array(packed["high"])
  np.testing.assert_allclose(low + unpack("positions", "<u2") / 65535 * (high - low), solid.vertices, atol=2e-5)
  np.testing.assert_allclose(unpack("normals", "i1") / 127, solid.vertex_normals, atol=0.005)
  assert np.array_equal(unpack("colours", "u1"), solid.visual.vertex_colors[:, :3])
  assert np.array_equal(unpack("faces", "<u4"), solid.faces)


NO_WEBGL = ("const real = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext = "
            "function(kind, ...rest) { return kind.startsWith('webgl') ? null : real.call(this, kind, ...rest); };")
# The pixels of the viewer, scaled to 64 x 64 RGBA.
LOOK = """(() => {
  const c = document.getElementById('viewer'), flat = document.createElement('canvas');
  flat.width = flat.height = 64;
  const pen = flat.getContext('2d');
  pen.drawImage(c, 0, 0, 64, 64);
  return Array.from(pen.getImageData(0, 0, 64, 64).data);
})()"""


def look(tab):
  return np.array(tab.evaluate(LOOK), float).reshape(64, 64, 4)


def mean_colour(pixels):
  return pixels[pixels[..., 3] > 200, :3].mean(axis=0)


@pytest.mark.parametrize("renderer", ["webgl2", "canvas2d"])
def test_the_page_works_in_a_browser(finished_run, tab, renderer):
  path = report.write_report(**finished_run | {"prompt": HOSTILE})
  if renderer == "canvas2d":
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=NO_WEBGL)
  tab.call("Emulation.setDeviceMetricsOverride", width=480, height=700, deviceScaleFactor=1, mobile=False)
  tab.call("Page.navigate", url=path.as_uri())
  tab.until("document.readyState === 'complete' && window.sdsViewer && sdsViewer.frames > 1")
  assert tab.evaluate("sdsViewer.renderer") == renderer
  tab.until("document.querySelector('video').readyState >= 2 && document.querySelector('video').currentTime > 0")
  assert tab.evaluate("document.querySelectorAll('.curve path.line').length") == 4
  assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
  assert tab.evaluate("document.querySelector('h1').textContent").startswith("</title><script>alert(1)")

  first, azimuth = look(tab), tab.evaluate("sdsViewer.azimuth")
  assert 300 < (first[..., 3] > 200).sum() < 3000
  green, blue = mean_colour(first[:28]), mean_colour(first[46:])
  assert green[1] > 1.5 * green[2] and blue[2] > 1.5 * blue[1]  # the cone is above the cylinder: z is up
  tab.until(f"sdsViewer.azimuth > {azimuth} + 0.2")  # rotates automatically
  assert np.abs(look(tab) - first).max() > 30

  sides = {side: red(tab, side) for side in (0.0, np.pi, 0.6, -0.6)}
  assert sides[0.0][0] > 20 and sides[np.pi][0] == 0  # the sign is on the front, +x
  assert sides[0.6][1] < 30 < 33 < sides[-0.6][1]  # seen from +y's side, the front lies to the left

  before, still = look(tab), tab.evaluate("sdsViewer.azimuth")
  drag(tab, 200, 0)
  assert tab.evaluate("sdsViewer.azimuth") == pytest.approx(still - 2.0, abs=0.3) and tab.evaluate("sdsViewer.touched")
  wait_for_frame(tab)
  assert np.abs(look(tab) - before).max() > 30
  covered = (look(tab)[..., 3] > 200).sum()
  tab.call("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=-300, **centre(tab))
  tab.until("sdsViewer.zoom > 1.2")
  wait_for_frame(tab)
  assert (look(tab)[..., 3] > 200).sum() > 1.2 * covered
  settled = tab.evaluate("sdsViewer.frames")
  time.sleep(0.3)
  assert tab.evaluate("sdsViewer.frames") == settled  # no frames are drawn after the last input

  assert tab.problems() == []
  urls = tab.requests()
  assert urls and all(re.match(r"file:|data:|blob:", url) for url in urls)


def test_the_page_fits_a_phone(finished_run, tab):
  path = report.write_report(**finished_run | {"prompt": "supercalifragilistic" * 20})
  tab.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
  tab.call("Page.navigate", url=path.as_uri())
  tab.until("document.readyState === 'complete' && window.sdsViewer && sdsViewer.frames > 1")
  assert tab.evaluate("document.documentElement.scrollWidth") <= 400
  assert tab.evaluate("document.getElementById('viewer').clientWidth") > 300
  assert tab.problems() == []


def wait_for_frame(tab):
  tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")


def red(tab, azimuth):
  """Returns the number of red pixels seen from `azimuth` at elevation 0, and their mean column."""
  tab.evaluate(f"Object.assign(sdsViewer, {{azimuth: {azimuth}, elevation: 0, touched: false}}); 1")
  frames = tab.evaluate("sdsViewer.frames")
  tab.until(f"sdsViewer.frames > {frames}")
  pixels = look(tab)
  mask = (pixels[..., 0] > 1.5 * pixels[..., 1]) & (pixels[..., 0] > 1.5 * pixels[..., 2]) & (pixels[..., 3] > 200)
  return int(mask.sum()), float(np.nonzero(mask)[1].mean()) if mask.any() else None


def centre(tab):
  x, y = tab.evaluate("(() => { const b = document.getElementById('viewer').getBoundingClientRect();"
                      "return [b.x + b.width / 2, b.y + b.height / 2]; })()")
  return {"x": x, "y": y}


def drag(tab, right, down):
  at = centre(tab)
  tab.call("Input.dispatchMouseEvent", type="mousePressed", button="left", buttons=1, clickCount=1, **at)
  for step in range(1, 5):
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1,
             x=at["x"] + right * step / 4, y=at["y"] + down * step / 4)
  tab.call("Input.dispatchMouseEvent", type="mouseReleased", button="left", buttons=0, clickCount=1,
           x=at["x"] + right, y=at["y"] + down)
