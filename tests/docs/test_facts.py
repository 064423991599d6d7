"""What the pages state by hand about names and layouts agrees with the code."""
import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def section(page, heading):
  """Returns the text of a page below a heading, up to the next one."""
  text = (ROOT / "docs" / page).read_text(encoding="utf-8")
  return re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]


def first_cells(text):
  """Returns the names in backticks in the first column of the tables of a text."""
  cells = re.findall(r"^\| ([^|]*) \|", text, flags=re.MULTILINE)
  return [name for cell in cells for name in re.findall("`([^`]+)`", cell)]


def first_numbers(text):
  """Returns the numbers in the first column of the tables of a text."""
  return re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)


def test_a_checkpoint_holds_what_the_page_says():
  from sds_jax.io import records
  from sds_jax.training.state import TrainState
  entries = [field.name for field in dataclasses.fields(TrainState)] + list(records.make_record(1, {}, {}))
  assert sorted(first_cells(section("guides/checkpoints.md", "What a checkpoint holds"))) == sorted(entries)


def test_licences_are_stated_for_every_prior():
  from sds_jax.priors import sources
  page = (ROOT / "docs/guides/priors.md").read_text(encoding="utf-8")
  table = page.split("<!-- end: prior_names -->")[1].split("\n## ")[0]
  assert set(first_cells(table)) == {*sources.HUB_IDS, *sources.SHIPPED}


def test_recipes_and_generators_are_all_described():
  from sds_jax.settings.generator import IMAGE_GENERATORS
  from sds_jax.settings.recipes import text3d
  page = (ROOT / "docs/guides/recipes.md").read_text(encoding="utf-8")
  assert set(first_cells(page.split("<!-- end: text_recipes -->")[1].split("<!-- generated")[0])) == set(text3d.RECIPES)
  described = section("guides/images.md", "Images").split("<!-- generated")[0]
  assert set(first_cells(described)) == set(IMAGE_GENERATORS)


def test_config_files_name_every_recipe_prior_and_generator():
  from sds_jax.priors import sources
  from sds_jax.settings.generator import IMAGE_GENERATORS
  from sds_jax.settings.recipes import image3d, text3d
  legal = {"text": [*text3d.RECIPES, *sources.published_names(pictures=False)], "image2d": IMAGE_GENERATORS,
           "image": [*image3d.PUBLISHED, *sources.published_names(pictures=True)]}
  for name, words in legal.items():
    text = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")
    assert [word for word in words if not re.search(rf"\b{word}\b", text)] == [], name


def test_records_are_all_listed():
  stated = " ".join(re.findall(r"`([\w/.-]+\.json)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
  assert [path.name for path in ROOT.glob("sds_jax/*/records/*.json") if path.name not in stated] == []


def test_guidance_conventions_and_samplers():
  from sds_jax.diffusion import guidance, timesteps
  guide = (ROOT / "docs/guides/guidance.md").read_text(encoding="utf-8").split("## Where")[0]
  assert set(first_cells(guide)) == set(guidance.CONVENTIONS)
  page = (ROOT / "docs/guides/timesteps.md").read_text(encoding="utf-8")
  assert all(f"`{name}`" in page for name in (*timesteps.SAMPLERS, *timesteps.WARPS, "dreamtime"))


def test_modes_and_exit_statuses():
  from sds_jax.commands import flags, main
  assert first_cells(section("reference/command.md", "Modes")) == list(flags.MODES)
  stated = [int(n) for n in first_numbers(section("reference/command.md", "Exit statuses"))]
  assert stated == sorted({0, 1, main.EXIT_MISTAKE, main.EXIT_DIVERGED, main.EXIT_INTERRUPTED})
  causes = first_numbers(section("guides/failures.md", "Exit statuses"))
  assert {0, *map(int, causes)} == set(stated)


def test_settings_that_pages_name_exist():
  """Names such as `loss.opacity` and flags such as `--config.loss.opacity` are settings of a task."""
  from sds_jax import settings
  from sds_jax.priors.base import Prior
  from sds_jax.schema import describe
  known = {row.name for tree in settings.TREES.values() for row in describe(tree())}
  known |= {f"prior.{field.name}" for field in dataclasses.fields(Prior)}  # the variable of examples
  groups = {name.split(".")[0] for name in known if "." in name}
  for path in sorted(ROOT.glob("docs/**/*.md")) + [ROOT / "README.md"]:
    text = path.read_text(encoding="utf-8")
    quoted = re.findall(r"`([a-z_]+(?:\.[a-z0-9_]+)+)(?:=[^`]*)?`", text)
    named = {name for name in quoted if name.split(".")[0] in groups}
    named |= set(re.findall(r"--config\.([a-z0-9_.]+)", text))
    named = {name.rstrip(".") for name in named if not name.startswith("distillation.shrunk")}
    unknown = {name for name in named - known if not name.endswith((".py", ".png", ".md", ".json", ".jsonl"))}
    assert unknown == set(), path
