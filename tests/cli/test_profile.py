import json
import sys

import pytest

from regnet_deploy.bundle import open_bundle


@pytest.fixture(autouse=True)
def _short_warm_up_on_a_quiet_machine(monkeypatch, short_warmup):
    monkeypatch.setattr("regnet_deploy.profiling.profile.busy_cores", lambda: 0.0)


def test_tables_name_units_the_two_totals_and_the_closed_form(cli, exported_bundle):
    done = cli("profile", exported_bundle, "--batch", "1,2", "--seconds", "0.01", "--threads", "1")
    assert done.returncode == 0, done.stderr
    for wanted in ("MACs M", "fvcore total M", "p50 ms", "p99 ms", "images/s", "onnx-fp32-uint8", "By operator"):
        assert wanted in done.stdout
    assert "are equal to the closed form's" in done.stdout
    assert "torch 2" in done.stdout


def test_json_is_one_document_on_stdout_and_what_the_bundle_holds(cli_process, exported_bundle):
    done = cli_process("profile", exported_bundle, "--batch", "1", "--seconds", "0.01", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == open_bundle(exported_bundle).parts["profile"]
    assert "Traceback" not in done.stderr


def test_the_picture_is_drawn(cli, exported_bundle, tmp_path):
    done = cli("profile", exported_bundle, "--batch", "1", "--seconds", "0.01", "--plot", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


COMPILED = ("--batch", "1", "--seconds", "0.01", "--threads", "1", "--compile")


@pytest.mark.slow
def test_torch_compile_runs_the_model(cli, exported_bundle):
    done = cli("profile", exported_bundle, *COMPILED)
    assert done.returncode == 0, done.stderr


def test_the_compiled_model_is_a_row_of_its_own(cli, exported_bundle, monkeypatch):
    monkeypatch.setattr("torch.compile", lambda model, **options: model)
    done = cli("profile", exported_bundle, *COMPILED)
    assert done.returncode == 0, done.stderr
    rows = [row for row in open_bundle(exported_bundle).parts["profile"]["latency"] if row["variant"] is None]
    assert [row["runtime"].partition(", ")[2] for row in rows] == ["", "compiled"]


def test_a_compiler_that_fails_is_one_line(cli, exported_bundle, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def fails(images):
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch.compile", lambda model, **options: fails)
    done = cli("profile", exported_bundle, *COMPILED)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("regnet-deploy: torch.compile fails here (No working C++ compiler found")
    assert last.endswith("leave --compile off")
    assert "profile" not in open_bundle(exported_bundle).parts


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--batch", "1,x"), "not a list of whole numbers"),
        (("--batch", "0"), "not in the range"),
        (("--seconds", "0"), "seconds"),
        (("--threads", "0"), "threads"),
        (("--device", "tpu"), "tpu"),
        (("--plot", "p.gif"), "a figure is written as .png"),
        (("--batch", "1000000000"), "give at most --batch"),
    ],
)
def test_options_that_cannot_be_used_are_one_line_and_exit_2(cli, exported_bundle, options, reason):
    done = cli("profile", exported_bundle, *options)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert "profile" not in open_bundle(exported_bundle).parts


def test_a_missing_bundle_is_one_line_that_names_the_command(cli, tmp_path):
    done = cli("profile", tmp_path / "none")
    assert done.returncode == 2
    assert "regnet-deploy select" in done.stderr


@pytest.mark.parametrize(("module", "options"), [("fvcore", ()), ("matplotlib", ("--plot", "p.png"))])
def test_a_missing_library_is_one_line_with_the_pip_command(cli, exported_bundle, monkeypatch, module, options):
    monkeypatch.setitem(sys.modules, module, None)
    done = cli("profile", exported_bundle, *options)
    assert done.returncode == 2
    assert f"pip install 'regnet-deploy[{'plot' if options else 'profile'}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_interrupt_while_measuring_leaves_the_bundle_as_it_was(cli, exported_bundle, monkeypatch):
    before = (exported_bundle / "bundle.json").read_bytes()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("regnet_deploy.profiling.profile.measure_latency", interrupted)
    done = cli("profile", exported_bundle)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "regnet-deploy: interrupted")
    assert (exported_bundle / "bundle.json").read_bytes() == before


@pytest.mark.gpu
def test_the_gpu_is_measured_by_its_own_clock(cli, exported_bundle):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    done = cli("profile", exported_bundle, "--device", "cuda", "--batch", "1", "--seconds", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["latency"][0]["device"] == torch.cuda.get_device_name()
