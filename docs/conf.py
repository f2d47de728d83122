"""The site's settings: `make docs` builds it, without a network."""

import datetime
import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

# Notebooks and guides are small forms of what they show, on a CPU.
os.environ.setdefault("NAQOPT_QUICK", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import naqopt  # noqa: E402  # which brings JAX, which reads the line above

project = "naqopt"
author = "The naqopt authors"
project_copyright = f"{datetime.date.today().year}, {author}"
version = release = naqopt.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
    "extensions.api",
    "extensions.gallery",
    "extensions.links",
    "extensions.mathematics",
    "extensions.studies",
]
exclude_patterns = ["_build", "extensions", "jupyter_execute", "README.md"]
suppress_warnings = ["myst.header"]  # included tables begin where their page's heading ends

# Docstrings have `single` backticks for code; what is documented here is linked.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the Args tell them, with shapes, units and ranges
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Guides are tested by `sphinx-build -b doctest`; the docstrings' examples by pytest.
doctest_test_doctest_blocks = ""

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / ".cache" / "docs-notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

html_theme = "furo"
html_title = f"naqopt {version}"
html_static_path = ["_static"]
html_css_files = ["naqopt.css"]
html_show_sphinx = False
html_copy_source = False

# Only who publishes knows the repository's address; without one there are no links to it.
repository = os.environ.get("NAQOPT_REPOSITORY", os.environ.get("READTHEDOCS_GIT_CLONE_URL", ""))
repository = repository.rstrip("/").removesuffix(".git")
html_theme_options = (
    {
        "source_repository": repository,
        "source_branch": os.environ.get("NAQOPT_BRANCH", "main"),
        "source_directory": "docs/",
    }
    if repository
    else {}
)


def _hide_source(app, pagename, templatename, context, doctree):
    """Takes the links to their source from pages that the build makes."""
    del app, templatename, doctree
    if pagename.startswith(("api/", "notebooks/", "results/studies/")):
        context["page_source_suffix"] = ""


def setup(app):
    """Connects the above."""
    app.connect("html-page-context", _hide_source)
