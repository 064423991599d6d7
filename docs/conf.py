"""Configuration of the documentation: `python -m sphinx -W --keep-going -b html docs build/docs`."""
import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import sds_jax  # noqa: E402 (found by the line above)

project = "sds_jax"
author = copyright = "The sds_jax developers"
version = release = sds_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "plain_docstrings", "api_pages"]
exclude_patterns = ["_ext", "**.ipynb_checkpoints"]
nitpicky = False
suppress_warnings = ["ref.python"]  # a field name in backticks that several classes have is no link

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Notebooks run while the site is built; SDS_JAX_DOCS_NOTEBOOKS=off shows them without outputs.
nb_execution_mode = os.environ.get("SDS_JAX_DOCS_NOTEBOOKS", "force")
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "replace"}  # of every flax.struct.dataclass
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
default_role = "code"
smartquotes = False  # which would make a dash of the hyphens of a flag

html_theme = "furo"
html_title = f"sds_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []
