"""Configuration of Sphinx; .docs/build.py writes the pages and calls it."""

import lamaml_jax

project = "lamaml_jax"
author = "The lamaml_jax authors"
copyright = author
release = lamaml_jax.__version__

extensions = ["myst_nb"]
# A page is written once, for the code host; its anchors are therefore the host's.
myst_heading_anchors = 4
# Notebooks are kept as they were executed, and executed again by the slow tests.
nb_execution_mode = "off"

default_role = "py:obj"
highlight_language = "none"
python_use_unqualified_type_names = True
maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"lamaml_jax {release}"
html_copy_source = False
html_show_sourcelink = False
