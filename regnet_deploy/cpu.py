"""The CPU: its model and instructions as the kernel lists them, and how many cores and how much memory may be used."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Collection
from pathlib import Path

from regnet_deploy.cgroup import cpu_quota, memory_limit

_CPUINFO = Path("/proc/cpuinfo")
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
#: Instructions that accumulate products of INT8 in INT32, by their names in Linux.
_INT8_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
#: Instructions that multiply in bfloat16, by their names in Linux.
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_FP16 = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})


def cpu_model() -> str:
    """Return the model of the first CPU, for example ``AMD EPYC 9254 24-Core Processor``."""
    return _first_cpu().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the first CPU by their names in Linux; empty where the kernel lists none."""
    facts = _first_cpu()
    return frozenset(f"{facts.get('flags', '')} {facts.get('Features', '')}".split())  # x86 and ARM


def available_cores() -> int:
    """Return how many physical cores this process may use: those of its affinity, at most the quota of its cgroups."""
    cpus = _allowed_cpus()
    cores = {_text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return max(1, math.ceil(min(len(cores), cpu_quota(_text))))


def available_cpus() -> float:
    """Return the time of how many logical CPUs this process has: of its affinity, at most the quota of its cgroups."""
    return min(len(_allowed_cpus()), cpu_quota(_text))


def available_memory() -> int:
    """Return how many bytes of memory this process may use: those of the machine, at most the limit of its cgroups."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit(_text)
    return total if limit is None else min(total, limit)


def cpu_has_bf16() -> bool:
    """Tell whether this CPU has instructions for bfloat16."""
    return not _BF16.isdisjoint(cpu_flags())


def cpu_has_fp16() -> bool:
    """Tell whether this CPU has instructions that compute in float16."""
    return not _FP16.isdisjoint(cpu_flags())


def has_vnni() -> bool:
    """Tell whether this CPU accumulates products of INT8 in INT32: by VNNI, AMX or ARM's dot product."""
    return bool(_int8_dot_products())


def int8_sums_saturate() -> bool:
    """Tell whether sums of UINT8 times INT8 can saturate: on x86 without VNNI, or where its flags are not known.

    x86 without VNNI adds two products in INT16, which saturates: weights must then be kept to 7 bits.
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    return platform.machine().lower() in _X86 and not has_vnni()


def describe_int8_support() -> str:
    """Return one line on what :func:`has_vnni` and :func:`int8_sums_saturate` found."""
    found, machine = _int8_dot_products(), platform.machine()
    if found:
        return f"{machine} with {', '.join(found)}: products of INT8 are accumulated in INT32"
    if int8_sums_saturate():
        return f"{machine} without VNNI: sums of two INT8 products saturate in INT16, so weights are kept to 7 bits"
    return f"{machine} without dot products of INT8"


def _allowed_cpus() -> Collection[int]:
    return os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)


def _int8_dot_products() -> list[str]:
    flags = cpu_flags()
    return [name for name in _INT8_DOT_PRODUCTS if name in flags]


def _first_cpu() -> dict[str, str]:
    facts: dict[str, str] = {}
    for line in (_text(_CPUINFO) or "").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def _text(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
