"""Changes to loggers of the process, which end with the last server that needs them."""

from __future__ import annotations

import logging
import threading

#: Loggers that are held: the number of holders, and the level and ``propagate`` from before.
_held: dict[str, tuple[int, int, bool]] = {}
_held_lock = threading.Lock()


def hold_logger(name: str, level: int | None = None) -> None:
    """Keep a logger's records from the handlers of its parents, and set its level, until :func:`release_logger`.

    Where several hold a logger, the last release restores it, in whatever order they end.
    """
    logger = logging.getLogger(name)
    with _held_lock:
        count, before, propagate = _held.get(name, (0, logger.level, logger.propagate))
        _held[name] = (count + 1, before, propagate)
        logger.propagate = False
        if level is not None:
            logger.setLevel(level)


def release_logger(name: str) -> None:
    """Undo one :func:`hold_logger`."""
    logger = logging.getLogger(name)
    with _held_lock:
        count, level, propagate = _held.pop(name)
        if count > 1:
            _held[name] = (count - 1, level, propagate)
        else:
            logger.propagate = propagate
            logger.setLevel(level)
