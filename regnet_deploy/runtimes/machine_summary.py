"""This machine, as far as a tuned setting depends on it: in a few words that can be compared."""

from __future__ import annotations

from typing import Any

from regnet_deploy.cpu import available_cores, cpu_flags, cpu_model
from regnet_deploy.engines.gpu import find_gpu

#: Instructions that runtimes choose their kernels by, as Linux calls them on x86 and ARM.
_INSTRUCTIONS = frozenset(
    {
        *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx_vnni_int8"),
        *("amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"),
    }
)


def machine_summary() -> dict[str, Any]:
    """Return this machine as JSON data.

    ``cpu`` (its model), ``cores`` (that this process may use), ``instructions`` (sorted, of those that decide about
    kernels) and ``gpu`` (name of the first, or None). What is equal runs a network equally fast.
    """
    gpu = find_gpu()
    return {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "instructions": sorted(_INSTRUCTIONS.intersection(cpu_flags())),
        "gpu": gpu.name if gpu else None,
    }
