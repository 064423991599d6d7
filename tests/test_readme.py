"""README.md is short, and the command of continuous integration is the one that it tells."""
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
  assert len(TEXT.splitlines()) <= 250


def test_the_command_of_continuous_integration_is_the_readmes():
  printed = subprocess.run(["sed", "-n", r"s/^    \(python3 -m venv .*pytest.*\)$/\1/p", str(ROOT / "README.md")],
                           capture_output=True, text=True, check=True).stdout.splitlines()
  assert len(printed) == 1 and "[test,parity,docs]" in printed[0]
  assert r"s/^    \(python3 -m venv .*pytest.*\)$/\1/p" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_folder_of_the_package_is_in_the_layout():
  """CONTRIBUTING.md tells what each folder holds."""
  layout = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
  told = set(re.findall(r"^\| `(sds_jax/\w+)` \|", layout, flags=re.MULTILINE))
  assert {f"sds_jax/{path.name}" for path in (ROOT / "sds_jax").iterdir() if (path / "__init__.py").is_file()} <= told
