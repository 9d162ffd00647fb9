"""The errors that a user can act on, as one tree. The text of each is one line that says what to do next.

::

    RegnetDeployError   base of all
      UsageError        an option or a value that cannot be used
      BundleError       a bundle that is missing, damaged, newer than this program or not writable
        MissingPart     a bundle without a part that is needed; names the command that makes it
        DamagedManifest bundle.json is damaged or missing; names the command that restores it
      DataError         images or folders that cannot be used
      MissingExtra      a library of an optional extra is not installed; names the pip command
      ProofError        an exported file does not agree with the trained model (exit code 3)
      ServerError       the server cannot start or does not answer

Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class RegnetDeployError(Exception):
    """Base of all errors meant for the user; ``exit_code`` is what the command line returns."""

    exit_code = 2


class UsageError(RegnetDeployError):
    """An option or a value that cannot be used."""


class BundleError(RegnetDeployError):
    """A bundle that is missing, damaged, newer than this program or not writable."""


class MissingPart(BundleError):
    """A bundle without the part that a command needs."""


class DamagedManifest(BundleError):
    """A bundle whose ``bundle.json`` is damaged, or missing beside its copy.

    Attributes:
        what: what is damaged and how, without what to do about it.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}: {advice}")
        self.what = what


class DataError(RegnetDeployError):
    """Images or folders that cannot be used."""


class MissingExtra(RegnetDeployError):
    """A library of an optional extra is not installed."""


class ProofError(RegnetDeployError):
    """An exported file that does not agree with the trained model."""

    exit_code = 3


class ServerError(RegnetDeployError):
    """The server cannot start or does not answer."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` for the nearest of ``known``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` or say in one line which extra brings it.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the module is there, something that it needs is broken: not for us to explain away
        raise MissingExtra(
            f"this needs {error.name}, which is not installed: pip install 'regnet-deploy[{extra}]'"
        ) from None
