"""The Sphinx configuration of the docs site. stage.py writes the source folder."""

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
myst_heading_anchors = 4  # the same anchors of headings as on GitHub
myst_enable_extensions = ["colon_fence"]
highlight_language = "text"
suppress_warnings: list[str] = []
