"""Open files: every connection is one, and a shell allows a process only so many."""

from __future__ import annotations

import contextlib

from regnet_deploy.errors import UsageError

#: Files that are open beside the connections.
_OTHERS = 32


def allow_connections(wanted: int, option: str | None = None) -> None:
    """Make sure that so many connections can be open; the limit of this process is raised as far as that takes.

    Args:
        wanted: connections.
        option: of the command that says how many, if one does, for the message.

    Raises:
        UsageError: more than the hard limit allows.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows knows no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHERS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than its hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
    most = soft if hard == resource.RLIM_INFINITY or hard >= needed else hard
    less = f", or give {option} {most - _OTHERS} at most" if option and most > _OTHERS else ""
    raise UsageError(
        f"{option or 'connections:'} {wanted} takes {needed} open files and this process may have {most}: raise the "
        f"limit (`ulimit -n {needed}`){less}"
    )
