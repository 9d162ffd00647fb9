"""The program as a whole: help, versions, suggestions, exit codes."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image

from regnet_deploy import __version__
from regnet_deploy.bundle import update_bundle
from regnet_deploy.cli.main import COMMANDS, main, run


def test_help_lists_every_command(cli):
    done = cli("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(cli, name):
    done = cli(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Example:" in done.stdout
    assert f"regnet-deploy {name}" in done.stdout
    assert "--json" in done.stdout


def test_version_is_the_packages(cli):
    assert __version__ in cli("--version").stdout


@pytest.mark.parametrize(("typed", "meant"), [("selct", "select"), ("server", "serve"), ("exprot", "export")])
def test_a_mistyped_command_is_suggested(cli, typed, meant):
    done = cli(typed)
    assert done.returncode == 2
    assert f"no command '{typed}' (did you mean {meant}?)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_command_shows_help(cli):
    done = cli()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


def test_help_imports_nothing_heavy(cli_process):
    heavy = "{'numpy', 'rich', 'torch', 'PIL', 'onnx', 'onnxruntime', 'starlette'}"
    prelude = f"import atexit, sys; atexit.register(lambda: print({heavy} & set(sys.modules)))"
    done = cli_process("--help", prelude=prelude)
    assert done.stdout.endswith("set()\n"), done.stderr


#: Commands whose first argument is no bundle.
WITHOUT_BUNDLE = (
    "check",
    "calibrate",
    "measurements",
    "select",
    "recipes",
    "import",
    "weights",
    "predict",
    "spaces",
    "sweep",
    "analyze",
)


@pytest.mark.parametrize("name", [c for c in COMMANDS if c not in WITHOUT_BUNDLE])
def test_a_missing_bundle_is_one_line_that_names_the_command_that_makes_it(cli, name, tmp_path):
    required = {name: ["--data", str(tmp_path)] for name in ("train", "evaluate", "tune-training")}
    required |= {"export-weights": ["--to", "timm", "-o", "a.pth"]}
    extra = required.get(name, [])
    done = cli(name, "nowhere", *extra, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "no bundle at nowhere" in done.stderr
    assert "regnet-deploy select" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_one_line(start_cli, tmp_path, extra):
    with (
        open("/dev/full", "w") as full,
        start_cli("select", "--gflops", "0.2", *extra, cwd=tmp_path, stdout=full) as process,
    ):
        _, errors = process.communicate()
    assert process.returncode == 2
    assert "cannot write the output: No space left on device" in errors
    assert "Traceback" not in errors


#: Redirections of the shell -> what they do. A closed stdout takes everything, as /dev/null does.
STREAMS = {"2>/dev/full": "full", "2>&-": "closed", ">&- 2>&-": "both closed", "<&- >&- 2>&-": "all closed"}


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("select --gflops 0.2 -o b", 0),
        ("show nowhere", 2),
        ("select --gflops", 2),
        ("nonsense", 2),
        ("", 2),
        ("--version", 0),
    ],
)
def test_messages_that_cannot_be_written_change_neither_the_work_nor_the_exit_code(tmp_path, arguments, code, streams):
    command = f"{sys.executable} -m regnet_deploy {arguments} {streams}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    if "-o b" in arguments:
        assert (tmp_path / "b" / "bundle.json").exists()


def test_a_full_disk_behind_both_streams_is_an_exit_code(tmp_path):
    command = f"{sys.executable} -m regnet_deploy select --gflops 0.2 --json >/dev/full 2>/dev/full"
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("arguments", [("predict", "-k", "6"), ("predict", "--json"), ("show",), ("show", "--json")])
def test_what_the_encoding_of_the_terminal_lacks_is_escaped(
    exported_bundle, tmp_path, monkeypatch, encoding, arguments
):
    update_bundle(exported_bundle, {"labels": ["\u732b", "\u72ac", "\u00e4", "b", "c", "d"]})
    image = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")  # a name that is not UTF-8
    Image.new("RGB", (24, 24)).save(image)
    command, *options = arguments
    screen = io.BytesIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(screen, encoding=encoding, write_through=True))
    with pytest.raises(SystemExit) as left:
        run([command, str(exported_bundle), *([image] if command == "predict" else []), *options])
    shown = screen.getvalue().decode(encoding)
    assert left.value.code == 0, shown
    if "--json" not in options:
        assert ("\u732b" if encoding == "utf-8" else r"\u732b") in shown
        assert ("\u00e4" if encoding != "ascii" else r"\xe4") in shown


@pytest.mark.parametrize("name", ["x" * 300, "file"])
def test_a_name_that_cannot_be_a_folder_is_one_line(cli, tmp_path, name):
    (tmp_path / "file").write_text("hello")
    for arguments in (
        ["show", name],
        ["select", "--gflops", "0.2", "-o", name],
        ["select", "--gflops", "0.2", "-o", f"{name}/b"],
    ):
        done = cli(*arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert (tmp_path / "file").read_text() == "hello"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{sys.executable} -m regnet_deploy select --gflops 0.2 --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(main, [name, "--help"], terminal_width=80)
    assert done.exit_code == 0
    assert [line for line in done.output.splitlines() if len(line) > 80] == []
