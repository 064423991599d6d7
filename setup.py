"""What pyproject.toml cannot say: where the configs lie, and the README as a package index can show it."""
import re
from pathlib import Path

from setuptools import find_packages, setup


def without_relative_links(text: str) -> str:
  """Drops images and unlinks texts whose targets are files of the repository; a package index has no such files."""
  text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
  return re.sub(r"\[([^\]]+)\]\((?!https?:|#|mailto:)[^)]*\)", r"\1", text)


setup(packages=[*find_packages(include=["sds_jax", "sds_jax.*"]), "sds_jax.configs"],
      package_dir={"sds_jax.configs": "configs"},  # a wheel holds them as sds_jax/configs/
      long_description=without_relative_links((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
      long_description_content_type="text/markdown")
