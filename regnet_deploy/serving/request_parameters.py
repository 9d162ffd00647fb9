"""Parameters of requests of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regnet_deploy.serving.batching import PRIORITIES
from regnet_deploy.serving.errors import RequestError

#: How parameters begin that ask for what only Triton has.
_NOT_OFFERED = ("shared_memory_", "triton_")
#: But this one of them, which Triton's load generator sends to every model, means nothing where nothing is streamed.
_HARMLESS = "triton_enable_empty_final_response"

#: Microseconds that a client may ask for, as wide as Triton's field is; the server's own deadline is far shorter.
_LONGEST_US = 2**64 - 1


def read_parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """Return the parameters of a request, an input or an output, which ``what`` names in errors (400)."""
    parameters = holder.get("parameters")
    if parameters is None:  # as some write what they do not have
        return {}
    if not isinstance(parameters, dict):
        raise RequestError(f"parameters of {what} must be an object")
    for name in parameters:
        # Passed over, it would leave the client without what it counts on.
        if name.startswith(_NOT_OFFERED) and name != _HARMLESS:
            raise RequestError(f"parameter {shorten(name)} of {what} is not offered here")
    return parameters


def check_custom(parameters: Mapping[str, Any]) -> None:
    """Check the parameters of a request that mean nothing to a model without state, as Triton does."""
    for name, value in parameters.items():
        if isinstance(value, (list, dict)):
            raise RequestError(f"parameter {shorten(name)} must be a text, a number or a flag, not {shorten(value)}")
    identity = parameters.get("sequence_id")
    is_number = type(identity) is int and 0 <= identity < 2**64
    if identity is not None and not (is_number or isinstance(identity, str)):
        raise RequestError(f"sequence_id must be a text or a whole number of 64 bits, not {shorten(identity)}")
    for name in ("sequence_start", "sequence_end"):
        if parameters.get(name) is not None:
            read_flag(parameters, name, False)


def read_schedule(parameters: Mapping[str, Any]) -> tuple[int, float | None]:
    """Return priority and timeout in seconds, as the extension ``schedule_policy`` has them."""
    priority, timeout_us = parameters.get("priority", 0), parameters.get("timeout", 0)
    if type(priority) is not int or priority < 0:
        raise RequestError(f"priority must be a whole number, 0 or more, not {shorten(priority)}")
    if priority > PRIORITIES:  # Triton takes what is beyond its levels as its default
        priority = 0
    if type(timeout_us) is not int or not 0 <= timeout_us <= _LONGEST_US:
        raise RequestError(f"timeout must be a whole number of microseconds, 0 or more, not {shorten(timeout_us)}")
    return priority, timeout_us / 1e6 if timeout_us else None


def read_flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a parameter that is true or false; another value is an error (400)."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, not {shorten(value)}")
    return value


def shorten(value: Any) -> str:
    """Show a client its value; what it nested or made long is only named."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
