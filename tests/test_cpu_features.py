"""Which products of eight bits a CPU adds without saturating, from what Linux says of it."""

import platform

import pytest

from regnet_deploy import cpu_features

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_2 avx2 avx512f avx512bw{}\nbugs\t\t: spectre_v1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd atomics{}\nCPU implementer\t: 0x41\n"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Return a function that puts a CPU in place of this one."""

    def put(machine: str, text: str | None) -> None:
        file = tmp_path / "cpuinfo"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(cpu_features, "_CPUINFO", file)

    return put


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"])
def test_x86_with_dot_products_does_not_saturate(cpu, flag):
    cpu("x86_64", X86.format(f" {flag}"))
    assert cpu_features.has_vnni()
    assert not cpu_features.int8_sums_saturate()
    assert cpu_features.describe_int8_support() == f"x86_64 with {flag}: products of 8 bits are added in 32"


def test_x86_without_saturates(cpu):
    cpu("x86_64", X86.format(""))
    assert not cpu_features.has_vnni()
    assert cpu_features.int8_sums_saturate()
    assert "without VNNI" in cpu_features.describe_int8_support()
    assert "7 bits" in cpu_features.describe_int8_support()


def test_a_flag_is_a_whole_word_of_the_right_line(cpu):
    cpu("x86_64", X86.format(" avx_vnni_int16x amx_int8x") + "model name\t: avx512_vnni\n")
    assert not cpu_features.has_vnni()


@pytest.mark.parametrize("flag", ["asimddp", "i8mm"])
def test_arm_with_dot_products(cpu, flag):
    cpu("aarch64", ARM.format(f" {flag}"))
    assert cpu_features.has_vnni()
    assert not cpu_features.int8_sums_saturate()


def test_arm_without_them_is_only_slower(cpu):
    cpu("aarch64", ARM.format(""))
    assert not cpu_features.has_vnni()
    assert not cpu_features.int8_sums_saturate()
    assert cpu_features.describe_int8_support() == "aarch64 without dot products of 8 bits"


@pytest.mark.parametrize(("machine", "expected"), [("x86_64", True), ("AMD64", True), ("arm64", False)])
def test_where_nothing_is_known_x86_is_taken_to_saturate(cpu, machine, expected):
    cpu(machine, None)
    assert not cpu_features.has_vnni()
    assert cpu_features.int8_sums_saturate() is expected


def test_this_machine_can_be_described():
    assert platform.machine() in cpu_features.describe_int8_support()
    assert "\n" not in cpu_features.describe_int8_support()
