"""How the guide is built: `make docs`. Its pages are docs/ and the documents beside the code."""

import zkv

project = "zkv"
author = "zkv contributors"
copyright = author
version = release = zkv.__version__

root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "DURABILITY.md",
    "PROTOCOL.md",
    "README.md",
    "SECURITY.md",
    "clients/README.md",
    "clients/*/README.md",
    "tests/conformance/README.md",
    "BENCHMARKS.md",
]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
nitpicky = False  # Names in docstrings may be of the code, and not of this reference.
default_role = "py:obj"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"zkv {release}"
html_static_path = ["static"]
html_css_files = ["output.css"]
# The pages stand as they do in the repository: the first one is not where one looks for it.
templates_path = ["templates"]
html_additional_pages = {"index": "root.html"}

# What a block prints is shown in the next one, as `text`: nobody needs it in a terminal.
copybutton_selector = 'div[class*="highlight-"]:not(.highlight-text) > div.highlight pre'
