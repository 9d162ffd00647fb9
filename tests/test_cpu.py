"""What the kernel lists about a CPU, and what follows from it."""

import platform

import pytest

from regnet_deploy import cpu

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_2 avx2 avx512f avx512bw{}\nbugs\t\t: spectre_v1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd atomics{}\nCPU implementer\t: 0x41\n"


@pytest.fixture
def put_cpu(tmp_path, monkeypatch):
    """Return a function that puts a CPU in place of this one."""

    def put(machine: str, text: str | None) -> None:
        file = tmp_path / "cpuinfo"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(cpu, "_CPUINFO", file)

    return put


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"])
def test_x86_with_dot_products_does_not_saturate(put_cpu, flag):
    put_cpu("x86_64", X86.format(f" {flag}"))
    assert cpu.has_vnni()
    assert not cpu.int8_sums_saturate()
    assert cpu.describe_int8_support() == f"x86_64 with {flag}: products of INT8 are accumulated in INT32"


def test_x86_without_saturates(put_cpu):
    put_cpu("x86_64", X86.format(""))
    assert not cpu.has_vnni()
    assert cpu.int8_sums_saturate()
    assert "without VNNI" in cpu.describe_int8_support()
    assert "7 bits" in cpu.describe_int8_support()


def test_a_flag_is_a_whole_word_of_the_right_line(put_cpu):
    put_cpu("x86_64", X86.format(" avx_vnni_int16x amx_int8x") + "model name\t: avx512_vnni\n")
    assert not cpu.has_vnni()


@pytest.mark.parametrize("flag", ["asimddp", "i8mm"])
def test_arm_with_dot_products(put_cpu, flag):
    put_cpu("aarch64", ARM.format(f" {flag}"))
    assert cpu.has_vnni()
    assert not cpu.int8_sums_saturate()


def test_arm_without_them_is_only_slower(put_cpu):
    put_cpu("aarch64", ARM.format(""))
    assert not cpu.has_vnni()
    assert not cpu.int8_sums_saturate()
    assert cpu.describe_int8_support() == "aarch64 without dot products of INT8"


@pytest.mark.parametrize(("machine", "expected"), [("x86_64", True), ("AMD64", True), ("arm64", False)])
def test_where_nothing_is_known_x86_is_taken_to_saturate(put_cpu, machine, expected):
    put_cpu(machine, None)
    assert not cpu.has_vnni()
    assert cpu.int8_sums_saturate() is expected


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2\n\n"
            "processor\t: 1\nmodel name\t: other\nflags\t\t: amx_int8\n",
            "AMD EPYC",
            {"fpu", "avx2"},
        ),
        (ARM.format(" i8mm"), "aarch64", {"fp", "asimd", "atomics", "i8mm"}),
        (None, "aarch64", set()),
    ],
)
def test_model_and_flags_are_those_of_the_first_cpu(put_cpu, monkeypatch, text, model, flags):
    put_cpu("aarch64", text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert (cpu.cpu_model(), cpu.cpu_flags()) == (model, flags)


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nmodel name : bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_one_of_the_flags(put_cpu, text, native):
    put_cpu("x86_64", text)
    assert cpu.cpu_has_bf16() is native


def test_this_machine_can_be_described():
    assert platform.machine() in cpu.describe_int8_support()
    assert "\n" not in cpu.describe_int8_support()


def test_memory_is_that_of_the_machine_or_of_its_cgroups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_text", lambda path: None)
    machine = cpu.available_memory()
    assert machine > 2**28
    monkeypatch.setattr(cpu, "_text", {"/sys/fs/cgroup/memory.max": str(2**28)}.get)
    assert cpu.available_memory() == 2**28
    monkeypatch.setattr(cpu, "_text", {"/sys/fs/cgroup/memory.max": str(2**60)}.get)
    assert cpu.available_memory() == machine
