"""Settings of the documentation site, which `make docs` builds with Sphinx.

The source folder is the root of the repository, so that pages may link to files outside of docs/.
`navigation.md` lists the pages. A page that it lacks is a warning, as is a link without a target,
and `make docs` fails at warnings.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # The reference imports what it documents.

project = "score-sde"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "docs/site/reference/*.rst"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "docs.site.pages",
    "docs.site.docstrings",
]

html_theme = "furo"
repository = os.environ.get("GITHUB_REPOSITORY")  # Set where GitHub builds the site.
if repository:
    url = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
    icon = {"name": "GitHub", "url": url, "html": "Repository", "class": ""}
    source = {"source_repository": url, "source_branch": "main", "source_directory": ""}
    html_theme_options = {"footer_icons": [icon], **source}
html_title = project
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_use_index = html_domain_indices = False  # The search finds names.
html_math_renderer = "mathml"
highlight_language = "none"  # of blocks that state none: commands, outputs and formulas
smartquotes_action = "D"  # dashes only

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 6
nb_execution_mode = "off"  # `make notebook` executes the notebooks.

default_role = "code"
autoclass_content = "both"  # the docstrings of the class and of __init__
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_type_aliases = {
    "ClassScore": "~controllable.guidance.ClassScore",
    "Constraint": "~solvers.predictor_corrector.Constraint",
    "LogProbs": "~controllable.guidance.LogProbs",
    "Marginal": "~losses.Marginal",
    "Options": "~options.Options",
    "Score": "~sde_lib.Score",
}
autodoc_typehints_format = "short"
napoleon_custom_sections = [("Attributes", "params_style")]  # not described one by one
python_maximum_signature_line_length = 80
