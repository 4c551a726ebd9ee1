"""Sphinx' configuration of the docs site; the source folder is what stage.py writes."""

project = "Imprint"
author = "the Imprint authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Imprint"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # links to headings as GitHub makes them
myst_enable_extensions = ["colon_fence"]
highlight_language = "text"
suppress_warnings: list[str] = []
