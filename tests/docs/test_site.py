"""The site builds without a warning, documents every public name, and needs no network to display."""
import html.parser
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

import sds_jax

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not all(map(importlib.util.find_spec, ("sphinx", "myst_nb", "furo", "latex2mathml"))),
                       reason="needs sds_jax[docs]")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """Builds the site with the command of CONTRIBUTING.md; notebooks are run by another test."""
  folder = tmp_path_factory.mktemp("site")
  command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", folder / "doctrees",
             "docs", folder / "html"]
  built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                         env=dict(os.environ, SDS_JAX_DOCS_NOTEBOOKS="off", JAX_PLATFORMS="cpu"))
  assert built.returncode == 0, built.stderr[-5000:]
  return folder / "html"


def test_every_public_name_is_documented(site):
  page = (site / "reference/api/public.html").read_text(encoding="utf-8")
  assert [name for name in sds_jax.__all__ if f'id="sds_jax.{name}"' not in page] == []


class Fetched(html.parser.HTMLParser):
  """Collects the addresses that a browser fetches to display a page."""

  def __init__(self):
    super().__init__()
    self.addresses = []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if tag in ("script", "img", "iframe", "video", "source", "link"):
      if tag == "link" and not {"stylesheet", "icon", "preload"} & set((attrs.get("rel") or "").split()):
        return
      self.addresses += [attrs[name] for name in ("src", "href") if attrs.get(name)]


def test_no_page_needs_the_network(site):
  for page in site.rglob("*.html"):
    parser = Fetched()
    parser.feed(page.read_text(encoding="utf-8"))
    assert [a for a in parser.addresses if a.startswith(("http:", "https:", "//"))] == [], page
  for style in site.rglob("*.css"):
    text = style.read_text(encoding="utf-8")
    assert "@import" not in text and "url(http" not in text and "url(//" not in text, style


def test_tables_were_filled_in(site):
  for page in site.rglob("*.html"):
    assert "{{ " not in page.read_text(encoding="utf-8"), page
