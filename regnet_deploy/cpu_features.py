"""What this CPU can multiply in eight bits, as far as it decides whether sums of products stay right.

x86 without VNNI multiplies UINT8 by INT8 and adds two products in 16 bits, where they saturate: weights must then be
kept to 7 bits. https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
#: Instructions that add products of eight bits in 32, as Linux calls them.
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
#: Lines of /proc/cpuinfo with the instructions: of x86, of ARM.
_LINES = ("flags", "Features")


def has_vnni() -> bool:
    """Tell whether this CPU has instructions that add products of eight bits in 32: VNNI or AMX, ARM's dot product."""
    return bool(_dot_products())


def int8_sums_saturate() -> bool:
    """Tell whether sums of UINT8 times INT8 can saturate: on x86 without such instructions, or where none are known."""
    return platform.machine().lower() in _X86 and not has_vnni()


def describe_int8_support() -> str:
    """Return in one line what :func:`has_vnni` and :func:`saturates` found."""
    found, machine = _dot_products(), platform.machine()
    if found:
        return f"{machine} with {', '.join(found)}: products of 8 bits are added in 32"
    if int8_sums_saturate():
        return f"{machine} without VNNI: sums of two products of 8 bits saturate at 16, so weights are kept to 7 bits"
    return f"{machine} without dot products of 8 bits"


def _dot_products() -> tuple[str, ...]:
    try:
        lines = _CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        return ()
    flags = {flag for line in lines if line.startswith(_LINES) for flag in line.partition(":")[2].split()}
    return tuple(name for name in _DOT_PRODUCTS if name in flags)
