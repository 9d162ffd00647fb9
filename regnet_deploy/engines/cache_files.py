"""Files of the user's cache folder with a checksum; each is replaced by one rename."""

from __future__ import annotations

import hashlib
from pathlib import Path

from regnet_deploy.durable_files import write_whole


def read_cache(path: Path, first_line: bytes) -> bytes | None:
    """Return the content of a file of :func:`write_cache`; empty if there is no file, None if it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    digest, _, content = data.removeprefix(first_line).partition(b"\n")
    intact = data.startswith(first_line) and hashlib.sha256(content).hexdigest().encode() == digest
    return content if intact else None


def write_cache(path: Path, first_line: bytes, content: bytes) -> None:
    """Write a file: what it is, the sha256 of its content, the content. Its folder must exist.

    Raises:
        OSError: it cannot be written; an earlier file stays.
    """
    write_whole(path, first_line + hashlib.sha256(content).hexdigest().encode() + b"\n" + content, 0o600)
