"""Sphinx configuration of the documentation site; `make docs` builds it into build/docs.

The sources are the Markdown files of the repository as they are, so every link works on the site and beside the code.
"""

from pathlib import Path

import click
from sphinx.application import Sphinx

from regnet_deploy import __version__
from regnet_deploy.cli.main import COMMANDS, main

project = "regnet-deploy"
release = __version__

root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

smartquotes = False

html_theme = "furo"
html_title = "regnet-deploy"
html_copy_source = False

#: The table of contents; the README has none beside the code.
CONTENTS = {
    "Use": [
        "docs/api",
        "docs/cli-reference",
        "docs/api-reference",
        "docs/bundle",
        "docs/selection",
        "docs/latency",
        "docs/weights",
        "docs/fine-tuning",
        "docs/images",
        "docs/training",
        "docs/clusters",
        "docs/sweeps",
        "docs/serving",
    ],
    "Measured": [
        "docs/measurements",
        "docs/precision",
        "docs/training-benchmark",
        "docs/serving-speed",
        "docs/input-pipeline",
        "docs/compatibility",
        "docs/design-spaces",
    ],
    "Develop": ["ARCHITECTURE", "CONTRIBUTING", "CHANGELOG"],
}


def complete_page(app: Sphinx, document: str, source: list[str]) -> None:
    """Append the table of contents to the README, and the help of all commands to their page."""
    if document == root_doc:
        for caption, pages in CONTENTS.items():
            lines = [":hidden:", f":caption: {caption}", "", *(f"/{page}" for page in pages)]
            source[0] += "\n".join(["\n```{toctree}", *lines, "```\n"])
    if document == "docs/cli-reference":
        source[0] += "".join(f"\n## {name}\n\n```text\n{help_text(name)}\n```\n" for name in COMMANDS)


def help_text(name: str) -> str:
    """Return what `regnet-deploy NAME --help` prints, 80 columns wide."""
    parent = click.Context(main, info_name=project, terminal_width=80)
    command = main.get_command(parent, name)
    assert command is not None
    return command.get_help(click.Context(command, parent, info_name=name, terminal_width=80))


def write_index(app: Sphinx, error: Exception | None) -> None:
    """Have the site open at the README."""
    if error is None and app.builder.format == "html":
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html"><title>{project}</title>'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register what Sphinx calls."""
    app.connect("source-read", complete_page)
    app.connect("build-finished", write_index)
