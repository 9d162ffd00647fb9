"""Reads and fills the templates of the targets in ``export/``, which have ``{{names}}`` in double braces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regnet_deploy
from regnet_deploy.errors import require

#: Extra that installs PyYAML and protobuf.
EXTRA = "package"

_PLACE = re.compile(r"\{\{([a-z_]+)\}\}")


def template_folder() -> Path:
    """Return the folder of templates: inside the installed package, or beside it in a source tree."""
    package = Path(regnet_deploy.__file__).parent
    installed = package / "export"
    return installed if installed.is_dir() else package.parent / "export"


def read(name: str) -> str:
    """Return the text of a template; ``name`` is its path below the folder."""
    return (template_folder() / name).read_text(encoding="utf-8")


def fill(name: str, values: Mapping[str, str]) -> str:
    """Return a template with its names replaced by values.

    Raises:
        KeyError: a name has no value, which is a bug.
    """
    return _PLACE.sub(lambda match: values[match[1]], read(name))


def load_yaml(name: str) -> list[Any]:
    """Return the documents of a YAML template.

    Raises:
        MissingExtra: PyYAML is not installed.
    """
    return list(require("yaml", EXTRA).safe_load_all(read(name)))


def dump_yaml(*documents: Any, head: str = "") -> str:
    """Return documents as YAML, with ``head`` as a comment in the first line.

    Raises:
        MissingExtra: PyYAML is not installed.
    """
    yaml = require("yaml", EXTRA)
    text: str = yaml.safe_dump_all(documents, sort_keys=False, width=110, allow_unicode=True)
    return f"# {head}\n{text}" if head else text
