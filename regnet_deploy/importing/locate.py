"""From what a user names to a file of weights: a path, an address, a repository of the hub, or public weights.

Only what the user names is downloaded. Files with names of torch.hub, which end in digits of their SHA-256, are shared
with its cache; others are in the cache folder of this program.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from regnet_deploy.errors import DataError, did_you_mean
from regnet_deploy.importing.download import Order, Remote, check_url, fetch, shown_url
from regnet_deploy.importing.file_digest import digest_of
from regnet_deploy.importing.hub import fetch_hub_weights, parse_hub_file
from regnet_deploy.importing.public_weights import digest_in_name, find_weights, public_weights
from regnet_deploy.progress import Progress
from regnet_deploy.user_cache import cache_folder, other_cache


@dataclass(frozen=True)
class LocatedWeights:
    """A file of weights on this machine.

    Attributes:
        file: its path.
        location: where it was downloaded from, without signatures; None for a path.
        published: name of the public weights, where the user named those.
    """

    file: Path
    location: str | None = None
    published: str | None = None


def locate_weights(named: str, progress: Progress | None = None) -> LocatedWeights:
    """Return the file of what a user names, downloaded if it is not on this machine.

    Args:
        named: path of a file; http or https address; ``hf:OWNER/NAME[/FILE][@REVISION]``; or a name of
            :func:`regnet_deploy.importing.public_weights.public_weights`. A file that exists is never a name.
        progress: shows the download.

    Raises:
        UsageError: it is an address that cannot be downloaded.
        DataError: it is none of these, or the download fails.
    """
    if os.path.lexists(named):  # Path.exists raises an error for a name that is too long, as addresses may be
        return LocatedWeights(Path(named))
    hub = parse_hub_file(named)
    if hub is not None:
        file, commit = fetch_hub_weights(hub, progress)
        return LocatedWeights(file, str(hub) if "@" in str(hub) or not commit else f"{hub}@{commit}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", named):
        return LocatedWeights(_fetch_address(named, progress), shown_url(named))
    known = {entry.name.lower(): entry for entry in public_weights()}
    if named.lower() in known:
        entry = find_weights(named)
        return LocatedWeights(*_downloaded(entry.location, progress), published=entry.name)
    hint = did_you_mean(named, [entry.name for entry in public_weights()])
    try:
        os.stat(named)
    except OSError as error:
        raise DataError(f"cannot read {named}: {error.strerror}{hint}") from None
    return LocatedWeights(Path(named))  # it came into being just now


def _downloaded(location: str, progress: Progress | None) -> tuple[Path, str | None]:
    found = locate_weights(location, progress)
    return found.file, found.location


def _fetch_address(address: str, progress: Progress | None) -> Path:
    url = check_url(address)
    name = re.sub(r"[\x00-\x1f]|\A\.+\Z", "_", PurePosixPath(unquote(urlsplit(url).path)).name) or "weights"
    promised = digest_in_name(name) or next(
        (entry.sha256_prefix for entry in public_weights() if entry.location == address and entry.sha256_prefix), None
    )
    shared = _torch_hub() / name
    if promised and shared.is_file() and digest_of(shared).startswith(promised):
        return shared
    own = cache_folder("downloads") / hashlib.sha256(url.encode()).hexdigest()[:16]

    def place(remote: Remote) -> Path:
        version = hashlib.sha256(remote.validator.encode()).hexdigest()[:16]
        return shared if promised else own / version / name

    def verify(file: Path, remote: Remote) -> None:
        digest = digest_of(file)
        if promised and not digest.startswith(promised):
            raise DataError(
                f"{shown_url(address)} is damaged or was changed: its SHA-256 begins with {digest[: len(promised)]}, "
                f"not with {promised}; nothing of it was kept, run the command again"
            )

    variable = "TORCH_HOME" if promised else "XDG_CACHE_HOME"
    return fetch(Order(url, place, verify, variable, replace=bool(promised)), progress)


def _torch_hub() -> Path:
    """Return the folder in which torch.hub keeps files that it downloaded."""
    return other_cache("TORCH_HOME", "torch") / "hub" / "checkpoints"
