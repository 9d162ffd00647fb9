"""Files of the Hugging Face hub: found in the cache of huggingface_hub, or downloaded into it.

The layout of the cache, and the variables HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and
HF_TOKEN_PATH are those of huggingface_hub 2.4, so each program uses what the other one downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from regnet_deploy.durable_files import write_whole
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.importing.download import NotFound, Order, Remote, Unreachable, check_url, fetch
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.user_cache import other_cache

_PUBLIC = "https://huggingface.co"
#: Weights that a repository may have, the first one that exists.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: Files beside the weights that say how they are used; a repository may lack them.
_BESIDE = ("config.json", "preprocessor_config.json")
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class HubFile:
    """Weights in a repository.

    Attributes:
        repository: ``OWNER/NAME``.
        revision: branch, tag or commit.
        file: path of the file in the repository; "" takes the first of the usual names.
    """

    repository: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"hf:{self.repository}{file}" + ("" if self.revision == "main" else f"@{self.revision}")


def parse_hub_file(text: str) -> HubFile | None:
    """Return what ``hf:OWNER/NAME[/FILE][@REVISION]`` or an address of the hub names; None for another text.

    Raises:
        UsageError: it begins with ``hf:`` and is not of this form.
    """
    page = re.match(rf"{re.escape(_PUBLIC)}/([\w.-]+/[\w.-]+)/?(?:[?#].*)?\Z", text)
    endpoints = "|".join(re.escape(each) for each in {_PUBLIC, _endpoint()})
    address = re.match(
        rf"(?:{endpoints})/([\w.-]+/[\w.-]+)/(?:resolve|blob|raw|tree)/([^/?#]+)/?([^?#]*)(?:[?#].*)?\Z", text
    )
    if page:
        return HubFile(page[1])
    if address:
        repository, revision, file = address[1], unquote(address[2]), unquote(address[3]).rstrip("/")
    elif text.startswith("hf:"):
        found = re.fullmatch(r"hf:/*([\w.-]+/[\w.-]+)((?:/[^@]+)?)(?:@(.+))?", text)
        if not found:
            raise UsageError(
                f"{text} is no repository of the hub: write hf:OWNER/NAME, hf:OWNER/NAME/FILE or hf:OWNER/NAME@REVISION"
            )
        repository, file, revision = found[1], found[2].strip("/"), found[3] or "main"
    else:
        return None
    for part in (*repository.split("/"), *file.split("/"), *revision.split("/")):
        if part in (".", ".."):
            raise UsageError(f"{text} is no repository of the hub: {part!r} is no name")
    return HubFile(repository, revision, file)


def fetch_hub_weights(wanted: HubFile, progress: Progress | None = None) -> tuple[Path, str]:
    """Return the weights of a repository, and the commit that they are of, "" where it is not known.

    The files that say how they are used are in the same folder. Where the hub cannot be reached, or HF_HUB_OFFLINE is
    set, the files of the cache are taken.

    Raises:
        DataError: the repository or its weights do not exist, may not be read, or cannot be downloaded or written.
    """
    shown = progress or NoProgress()
    if (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE:
        cached = _cached_weights(wanted)
        if cached is None:
            raise DataError(f"{wanted} is not in the cache {_cache()}, and HF_HUB_OFFLINE forbids to download it")
        return cached, _commit_of(wanted)
    try:
        weights = _fetch_first(wanted, shown)
        for name in _BESIDE:
            with contextlib.suppress(NotFound):
                _fetch_file(wanted, str(PurePosixPath(_path_in(wanted, weights)).parent / name), shown)
    except Unreachable as error:
        cached = _cached_weights(wanted)
        if cached is None:
            raise
        shown.message(f"{str(error).partition(';')[0]}; {wanted} is taken from the cache")
        weights = cached
    return weights, _commit_of(wanted)


def _fetch_first(wanted: HubFile, progress: Progress) -> Path:
    names = (wanted.file,) if wanted.file else _WEIGHTS
    for name in names:
        with contextlib.suppress(NotFound):
            return _fetch_file(wanted, name, progress)
    raise DataError(
        f"{_endpoint()}/{wanted.repository} has no {' and no '.join(names)} in {wanted.revision}, or does not exist: "
        "check the name"
    )


def _fetch_file(wanted: HubFile, name: str, progress: Progress) -> Path:
    """Download a file into the cache, if its content is not there, and return its path among those of the commit."""
    folder, seen = _repository_folder(wanted), []

    def place(remote: Remote) -> Path:
        seen.append(remote)
        if not remote.validator:
            raise DataError(f"{_endpoint()} is not a hub: it sends no ETag for {name}")
        known = re.fullmatch(r"[\w.-]{8,128}", remote.validator)
        blob = remote.validator if known else hashlib.sha256(remote.validator.encode()).hexdigest()
        return folder / "blobs" / blob

    path, revision = quote(name), quote(wanted.revision, safe="")
    blob = fetch(
        Order(
            url=check_url(f"{_endpoint()}/{wanted.repository}/resolve/{revision}/{path}"),
            place=place,
            verify=_verify,
            folder_variable="HF_HOME",
            token=_token(),
            denied=(
                f"the hub has no {wanted.repository}, or it is private or gated: check the name, accept its terms at "
                f"{_endpoint()}/{wanted.repository}, and set HF_TOKEN to your token"
            ),
        ),
        progress,
    )
    commit = seen[-1].commit if re.fullmatch(r"[0-9a-f]{40,64}", seen[-1].commit) else wanted.revision
    pointer = folder / "snapshots" / commit / name
    try:
        pointer.parent.mkdir(parents=True, exist_ok=True)
        if not pointer.exists() or not pointer.samefile(blob):
            pointer.unlink(missing_ok=True)
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        reference = folder / "refs" / wanted.revision
        if commit != wanted.revision:
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_whole(reference, commit.encode())
    except OSError as error:
        raise DataError(f"cannot write {pointer}: {error.strerror}; set HF_HOME to another folder") from None
    return pointer


def _verify(file: Path, remote: Remote) -> None:
    """Compare a file with its ETag: the SHA-256 of large files, and git's SHA-1 of others."""
    if re.fullmatch(r"[0-9a-f]{64}", remote.validator):
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    elif re.fullmatch(r"[0-9a-f]{40}", remote.validator):
        content = file.read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return
    if digest != remote.validator:
        raise DataError(
            f"the download is damaged or was changed on its way: its digest begins with {digest[:8]}, and the hub says "
            f"{remote.validator[:8]}; nothing of it was kept, run the command again"
        )


def _cached_weights(wanted: HubFile) -> Path | None:
    folder = _repository_folder(wanted) / "snapshots" / (_commit_of(wanted) or wanted.revision)
    names = (wanted.file,) if wanted.file else _WEIGHTS
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _commit_of(wanted: HubFile) -> str:
    """Return the commit of a revision in the cache, "" where it is not known."""
    try:
        text = (_repository_folder(wanted) / "refs" / wanted.revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = wanted.revision
    return text if re.fullmatch(r"[0-9a-f]{40,64}", text) else ""


def _path_in(wanted: HubFile, pointer: Path) -> str:
    """Return the path of a file in its repository."""
    return "/".join(pointer.relative_to(_repository_folder(wanted) / "snapshots").parts[1:])


def _repository_folder(wanted: HubFile) -> Path:
    return _cache() / f"models--{wanted.repository.replace('/', '--')}"


def _endpoint() -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _PUBLIC
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"HF_ENDPOINT is {endpoint!r}, not an address such as {_PUBLIC}")
    return endpoint


def _home() -> Path:
    return other_cache("HF_HOME", "huggingface")


def _cache() -> Path:
    variable = "HF_HUB_CACHE" if os.environ.get("HF_HUB_CACHE") else "HUGGINGFACE_HUB_CACHE"
    return other_cache(variable, "") if os.environ.get(variable) else _home() / "hub"


def _token() -> str:
    """Return the user's token; "" where there is none, or the user does not want it to be sent unasked."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return ""
    given = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not given:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            file = other_cache("HF_TOKEN_PATH", "") if os.environ.get("HF_TOKEN_PATH") else _home() / "token"
            given = file.read_text(encoding="utf-8")
    token = "".join(given.split())
    if not token.isascii():
        raise UsageError("HF_TOKEN holds characters that no token has: copy it again")
    return token
