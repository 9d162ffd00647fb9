"""Measurements as a text file: JSON lines after a first line with the schema, to hand them on or put them into git."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from regnet_deploy.bundle.record import from_json
from regnet_deploy.errors import BundleError, DataError
from regnet_deploy.latency.measurement import SCHEMA, Measurement, canonical

#: Environment variable with the path of the store.
VARIABLE = "REGNET_DEPLOY_MEASUREMENTS"
#: Key of the first line; its value is the schema.
HEADER = "regnet_deploy_measurements"
_ADVICE = "give a store, or what `regnet-deploy measurements --export` wrote"


def json_lines(measurements: Iterable[Measurement]) -> bytes:
    """Return the content of a file with these measurements."""
    lines = [canonical({HEADER: SCHEMA}), *(canonical(each.to_json()) for each in measurements)]
    return "".join(f"{line}\n" for line in lines).encode()


def read_json_lines(path: Path) -> Iterator[Measurement]:
    """Yield the measurements of a file.

    Raises:
        DataError: it is no such file, or was written by a newer version.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                data = json.loads(line)
                if number == 1:
                    check_schema(path, data[HEADER])
                else:
                    yield from_json(data, Measurement)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (LookupError, TypeError, ValueError, RecursionError, BundleError) as error:
        what = "the first line does not name the format" if number <= 1 else " ".join(f"line {number}: {error}".split())
        raise DataError(f"{path} is no file of measurements ({what:.200}): {_ADVICE}") from None
    if number == 0:
        raise DataError(f"{path} is empty: {_ADVICE}")


def check_schema(path: Path, schema: int) -> None:
    """Check that this version can read what a file has.

    Raises:
        DataError: a newer version wrote it.
    """
    if schema > SCHEMA:
        raise DataError(
            f"{path} was written by a newer regnet-deploy (schema {schema}, this version reads up to {SCHEMA}): "
            f"upgrade regnet-deploy, or name another file by {VARIABLE}"
        )
