import sys
from importlib import metadata
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

project = "flask-workersize"
copyright = "the authors of flask-workersize"
release = metadata.version(project)
version = release

extensions = ["sphinx.ext.autodoc", "pallets_sphinx_themes", "myst_parser", "from_code"]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = True
# Types of Python and of other projects: their docs are elsewhere, and the build needs no network.
nitpick_ignore = [
    ("py:class", "Flask"),
    ("py:class", "ServerName"),
    ("py:class", "collections.abc.Callable"),
    ("py:class", "collections.abc.Iterable"),
    ("py:class", "collections.abc.Mapping"),
    ("py:class", "flask.app.Flask"),
    ("py:data", "sys.platform"),
    # Passed in by the package itself.
    ("py:class", "flask_workersize.health.measured.MeasuredReport"),
    ("py:class", "flask_workersize.runtime.deployment.Deployment"),
    ("py:class", "flask_workersize.runtime.history.Past"),
    ("py:class", "flask_workersize.runtime.snapshot.Snapshot"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False

html_theme = "flask"
html_title = "flask-workersize"
html_short_title = "flask-workersize"
html_static_path = ["_static"]
html_css_files = ["workersize.css"]
html_sidebars = {
    "index": ["localtoc.html", "searchbox.html"],
    "**": ["localtoc.html", "relations.html", "searchbox.html"],
}
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
# The banner would ask a package index for the newest version.
version_banner = False
