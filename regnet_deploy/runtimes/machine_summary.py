"""This machine, as far as a tuned setting depends on it: in a few words that can be compared."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from regnet_deploy.cores import available_cores
from regnet_deploy.engines.gpu import find_gpu

_CPUINFO = Path("/proc/cpuinfo")

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
    facts = _cpu_facts()
    flags = f"{facts.get('flags', '')} {facts.get('Features', '')}".split()
    gpu = find_gpu()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": available_cores(),
        "instructions": sorted(_INSTRUCTIONS.intersection(flags)),
        "gpu": gpu.name if gpu else None,
    }


def _cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first CPU; nothing elsewhere."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
