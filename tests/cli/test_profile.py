import json
import subprocess
import sys

import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.cli.main import run


@pytest.fixture(autouse=True)
def _short_warm_up_on_a_quiet_machine(monkeypatch):
    monkeypatch.setattr("regnet_deploy.profiling.latency.WARMUP_S", 0.01)
    monkeypatch.setattr("regnet_deploy.profiling.latency.WARMUP_LIMIT_S", 0.05)
    monkeypatch.setattr("regnet_deploy.profiling.profile.busy_cores", lambda: 0.0)


@pytest.fixture
def cli(capsys):
    """Return a call of the program in this process: exit code, stdout, stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            run([str(argument) for argument in arguments])
        return (left.value.code, *capsys.readouterr())

    return call


def test_tables_name_units_the_two_totals_and_the_closed_form(cli, exported_bundle):
    code, out, err = cli("profile", exported_bundle, "--batch", "1,2", "--seconds", "0.01", "--threads", "1")
    assert code == 0, err
    for wanted in ("MACs M", "fvcore total M", "p50 ms", "p99 ms", "images/s", "onnx-fp32-uint8", "By operator"):
        assert wanted in out
    assert "are equal to the closed form's" in out
    assert "torch 2" in out


def test_json_is_one_document_on_stdout_and_what_the_bundle_holds(exported_bundle):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "regnet_deploy",
            "profile",
            exported_bundle,
            "--batch",
            "1",
            "--seconds",
            "0.01",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == open_bundle(exported_bundle).part("profile")
    assert "Traceback" not in done.stderr


def test_the_picture_is_drawn(cli, exported_bundle, tmp_path):
    code, _, err = cli("profile", exported_bundle, "--batch", "1", "--seconds", "0.01", "--plot", tmp_path / "p.png")
    assert code == 0, err
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--batch", "1,x"), "not a list of whole numbers"),
        (("--batch", "0"), "below 1"),
        (("--seconds", "0"), "seconds"),
        (("--threads", "0"), "threads"),
        (("--device", "tpu"), "tpu"),
        (("--plot", "p.gif"), "a picture is written as .png"),
        (("--batch", "1000000000"), "give at most --batch"),
    ],
)
def test_options_that_cannot_be_used_are_one_line_and_exit_2(cli, exported_bundle, options, reason):
    code, out, err = cli("profile", exported_bundle, *options)
    assert code == 2
    assert reason in err
    assert err.count("\n") == 1
    assert out == ""
    assert "profile" not in open_bundle(exported_bundle)


def test_a_missing_bundle_is_one_line_that_names_the_command(cli, tmp_path):
    code, _, err = cli("profile", tmp_path / "none")
    assert code == 2
    assert "regnet-deploy select" in err


@pytest.mark.parametrize(("module", "options"), [("fvcore", ()), ("matplotlib", ("--plot", "p.png"))])
def test_a_missing_library_is_one_line_with_the_pip_command(cli, exported_bundle, monkeypatch, module, options):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = cli("profile", exported_bundle, *options)
    assert code == 2
    assert f"pip install 'regnet-deploy[{'plot' if options else 'profile'}]'" in err
    assert err.count("\n") == 1


def test_an_interrupt_while_measuring_leaves_the_bundle_as_it_was(cli, exported_bundle, monkeypatch):
    before = (exported_bundle / "bundle.json").read_bytes()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("regnet_deploy.profiling.profile.measure_latency", interrupted)
    code, out, err = cli("profile", exported_bundle)
    assert (code, out, err.strip()) == (130, "", "regnet-deploy: interrupted")
    assert (exported_bundle / "bundle.json").read_bytes() == before


@pytest.mark.gpu
def test_the_gpu_is_measured_by_its_own_clock(cli, exported_bundle):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    code, out, err = cli("profile", exported_bundle, "--device", "cuda", "--batch", "1", "--seconds", "0.1", "--json")
    assert code == 0, err
    assert json.loads(out)["latency"][0]["device"] == torch.cuda.get_device_name()
