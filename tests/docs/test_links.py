"""Relative links and anchors of README.md, CONTRIBUTING.md, CHANGELOG.md and the pages lead somewhere."""
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "docs/**/*.ipynb", "sds_jax/**/*.md")
               for path in ROOT.glob(pattern) if "_build" not in path.parts)
GENERATED = {ROOT / "docs/reference/api/index.rst"}


def without_blocks(text):
  """Returns Markdown without its fenced blocks."""
  return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def text_of(path):
  """Returns the Markdown of a page without its code."""
  text = path.read_text(encoding="utf-8")
  if path.suffix == ".ipynb":
    cells = json.loads(text)["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
  return re.sub(r"`[^`\n]*`", "", without_blocks(text))


def anchors(path):
  """Returns the anchors of the headings of a page, as GitHub and MyST make them."""
  headings = re.findall(r"^#+ (.*)$", without_blocks(path.read_text(encoding="utf-8")), flags=re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links(path):
  for link in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text_of(path)):
    if re.match(r"[a-z]+:", link):
      continue
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    assert target.exists() or target in GENERATED, f"{path.name}: {link} leads nowhere"
    if anchor:
      assert anchor in anchors(target), f"{path.name}: {target.name} has no heading #{anchor}"


def test_a_broken_link_would_be_seen(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("# One heading\n\n[good](#one-heading) [bad](#two)\n")
  assert anchors(page) == {"one-heading"}
  with pytest.raises(AssertionError, match="no heading #two"):
    test_links(page)


EXAMPLES = {"sds_jax/diffusion/estimators/shrunk.py", "sds_jax/generators/NAME.py", "sds_jax/priors/families/NAME.py"}
"""Files that a reader of a how-to is told to write."""


@pytest.mark.parametrize("path", [path for path in PAGES if path.suffix == ".md"
                                  and ROOT / "sds_jax" not in path.parents],
                         ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_files_that_are_named_exist(path):
  text = path.read_text(encoding="utf-8")
  for module in re.findall(r"python -m (sds_jax[\w.]+)", text):
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
  for name in set(re.findall(r"\b(?:sds_jax|tests|configs|docs)/[\w./]+\.py\b", text)) - EXAMPLES:
    assert (ROOT / name).is_file(), name
