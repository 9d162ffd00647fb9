"""This machine, as far as tuned settings depend on it."""

from __future__ import annotations

from regnet_deploy.bundle.measurements import MachineSummary
from regnet_deploy.cpu import available_cores, cpu_flags, cpu_model
from regnet_deploy.engines.gpu import find_gpu

#: Instruction sets by which runtimes choose their kernels, as Linux names them on x86 and ARM.
_INSTRUCTIONS = frozenset(
    {
        *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx_vnni_int8"),
        *("amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"),
    }
)


def machine_summary() -> MachineSummary:
    """Return this machine."""
    gpu = find_gpu()
    return MachineSummary(
        cpu=cpu_model(),
        cores=available_cores(),
        instructions=tuple(sorted(_INSTRUCTIONS.intersection(cpu_flags()))),
        gpu=gpu.name if gpu else None,
    )
