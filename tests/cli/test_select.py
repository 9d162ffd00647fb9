"""The command that starts everything: what it prints, writes and refuses."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.enumeration import ConstrainedSpace, regnets_between
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import find_published


def test_a_budget_becomes_a_bundle_in_the_current_folder(cli, tmp_path):
    done = cli("select", "--gflops", 0.4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "most likely of" in done.stdout
    assert "Errors on your data will differ" in done.stdout
    assert "next: regnet-deploy train --data DIR" in done.stderr
    bundle = open_bundle(tmp_path / "regnet-bundle")
    architecture = bundle.parts["architecture"]
    total = network_complexity(Network.from_json(architecture), 224, 1000).total
    assert int(total.macs) == bundle.parts["selection"]["met"]["macs"]
    assert abs(total.macs / 0.4e9 - 1) < 0.01
    assert bundle.parts["preprocessing"]["resize"] == 256


def test_json_is_one_document_with_the_promised_keys(cli, tmp_path):
    done = cli("select", "--gflops", 0.4, "--family", "x", "--show", 3, "--json", cwd=tmp_path)
    data = json.loads(done.stdout)
    assert {"budget", "considered", "pick", "runners_up"} <= set(data)
    assert len(data["runners_up"]) == 2
    keys = {"family", "d", "w_0", "w_a", "w_m", "b", "g", "depths", "widths", "group_widths"}
    for candidate in (data["pick"], *data["runners_up"]):
        assert keys | {"macs", "parameters", "activations", "score"} == set(candidate)
        assert candidate["family"] == "x"
    assert data["considered"] >= 1000


def test_off_224_pixels_no_imagenet_error_is_stated(cli, tmp_path):
    done = cli("select", "--gflops", "0.1", "--resolution", "112", cwd=tmp_path)
    assert "Expected error: not known at 112 pixels" in done.stdout
    assert "where this network has 0.351 GMACs" in done.stdout
    assert "RegNetY, which has the lower errors of the published networks at 224 pixels" in done.stdout
    assert " % top-1" not in done.stdout
    data = json.loads(
        cli("select", "--gflops", "100M", "--resolution", "112", "--json", "--force", cwd=tmp_path).stdout
    )
    assert (data["expected_error"], data["other_family"]) == (None, None)


def test_a_published_network_is_taken_by_name(cli, tmp_path):
    done = cli("select", "--published", "regnety_040", "-o", "y4", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["pick"]["macs"] == 3_973_301_344
    architecture = open_bundle(tmp_path / "y4").parts["architecture"]
    assert architecture["widths"] == [128, 192, 512, 1088]


def test_a_published_network_at_another_resolution_has_the_macs_it_has_there(cli, tmp_path):
    done = cli("select", "--published", "RegNetX-200MF", "--resolution", 32, "--classes", 10, "--json", cwd=tmp_path)
    data = json.loads(done.stdout)
    assert data["budget"]["macs"] == data["pick"]["macs"] < 20e6
    assert open_bundle(tmp_path / "regnet-bundle").parts["selection"]["reference_macs"] == 199_040_872


def test_a_network_published_by_its_stages_only_is_taken_without_parameters(cli, tmp_path):
    done = cli("select", "--published", "RegNetY-1GF(vitconv)", "--json", cwd=tmp_path)
    pick = json.loads(done.stdout)["pick"]
    assert pick["widths"] == [40, 120, 328, 904]
    assert pick["w_a"] is None
    assert pick["score"] is None


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_written(cli, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    done = cli("select", "--gflops", 0.2, "--plot", f"a.{suffix}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    start = (tmp_path / f"a.{suffix}").read_bytes()[:100]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<?xml" in start


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a budget such as --gflops 4"),
        (["--gflops", 4, "--published", "RegNetX-4.0GF"], "give one of --gflops, --published and --trial"),
        (["--gflops", 0.2, "--seed", -1], "-1 is not in the range"),
        (["--gflops", 0], "0.0 is not in the range"),
        (["--gflops", -1], "-1.0 is not in the range"),
        (["--gflops", "nan"], "'nan' is not a finite number"),
        (["--gflops", 1000], "the nearest has 157.7"),
        (["--gflops", "4e9"], "for 4e+09 MACs give 4 or 4G"),
        (["--gflops", 4, "--max-params", "25e6"], "for 2.5e+07 parameters give 25 or 25M"),
        (["--gflops", "four"], "'four' is not a finite number such as 0.4 or 400M"),
        (["--gflops", 4, "--family", "anny"], "got 'anny' (did you mean any?)"),
        (["--gflops", 4, "--resolution", 7], "7 is not in the range 16<=x<=2048"),
        (["--gflops", 4, "--depth", "3:x"], "'3:x' is not a range such as 12:28"),
        (["--gflops", 4, "--depth", "28:12"], "d must be a range within 4 to 48, got 28 to 12"),
        (["--gflops", 4, "--group-width", "3:5", "--group-multiple", 8], "no group width from 3 to 5"),
        (["--gflops", 4, "--max-params", 1], "no candidate has at most 1 M parameters"),
        (["--gflops", 4, "--plot", "a.gif"], "a figure is written as .png, .svg or .pdf, got a.gif"),
        (["--gflops", 4, "--plot", "no/a.png"], "there is no folder no for a.png"),
        (["--published", "RegNetX-4.0GF", "--depth", "20"], "--depth applies to a search"),
        (["--published", "RegNetX-4.0GF", "--plot", "a.png"], "--plot applies to a search"),
        (["--published", "RegNetX-4.0GF", "--evidence", "a.sweep"], "--evidence applies to a search"),
        (["--gflops", 4, "--evidence", "a.sweep"], "no population at a.sweep"),
        (["--published", "RegNetY-5.0GF"], "(did you mean RegNetY-4.0GF?)"),
        (["--gflop", 4], "'--gflops'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(cli, tmp_path, arguments, said):
    done = cli("select", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_trained_weights_are_not_overwritten_unasked(cli, tmp_path):
    assert cli("select", "--gflops", 0.2, cwd=tmp_path).returncode == 0
    assert cli("select", "--gflops", 0.3, cwd=tmp_path).returncode == 0  # nothing was lost by that
    update_bundle(tmp_path / "regnet-bundle", {}, {"weights.safetensors": b"precious"})
    done = cli("select", "--gflops", 0.2, cwd=tmp_path)
    assert done.returncode == 2
    assert "already holds weights.safetensors" in done.stderr
    assert open_bundle(tmp_path / "regnet-bundle").read("weights.safetensors") == b"precious"
    assert cli("select", "--gflops", 0.2, "--force", cwd=tmp_path).returncode == 0


def test_select_imports_neither_torch_nor_matplotlib_nor_pillow(cli_process, tmp_path):
    heavy = "{'torch', 'matplotlib', 'PIL', 'scipy', 'onnx', 'onnxruntime'}"
    prelude = f"import atexit, sys; atexit.register(lambda: print({heavy} & set(sys.modules)))"
    done = cli_process("select", "--gflops", "0.2", prelude=prelude, cwd=tmp_path)
    assert done.stdout.endswith("set()\n"), done.stderr


def write_sweep(path, error_of, *, n=60):
    """Write made-up trials of RegNetXs at 0.4 GMACs as CSV; their errors by ``error_of(d)``."""
    rows = regnets_between(0.39e9, 0.41e9, ConstrainedSpace("x"), w_m_step=0.05)
    rows = rows.take(rows.distinct_rows(rows.w_a_low))
    rows = rows.take(np.random.default_rng(0).choice(len(rows), n, replace=False))
    lines = ["error,macs,parameters,d,w_0,w_a,w_m,g,depths,widths,group_widths"]
    for i in range(n):
        numbers = (rows.macs, rows.parameters, rows.d, rows.w_0, rows.w_a_low, rows.w_m, rows.g)
        stages = (" ".join(map(str, values[i])) for values in (rows.depths, rows.widths, rows.group_widths))
        lines.append(",".join([f"{error_of(rows.d[i]):.3f}", *(str(values[i]) for values in numbers), *stages]))
    path.write_text("\n".join(lines) + "\n")


def test_evidence_ranks_and_is_shown_and_recorded(cli, tmp_path):
    write_sweep(tmp_path / "mine.csv", lambda d: 40 - d / 4)
    done = cli("select", "--gflops", 0.4, "--family", "x", "--evidence", "mine.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "error %" in done.stdout
    assert "Selected candidate 1: lowest predicted error of" in done.stdout
    assert "Evidence: 60 trials of mine.csv; on trials left out of the fit the regression has" in done.stdout
    assert "the regression is better and ranks the candidates." in done.stdout
    selection = open_bundle(tmp_path / "regnet-bundle").parts["selection"]
    evidence = selection["evidence"]
    assert evidence["decides"] is True
    assert evidence["trials"] == 60
    assert evidence["sources"][0]["file"] == "mine.csv"
    assert evidence["sources"][0]["sha256"] == hashlib.sha256((tmp_path / "mine.csv").read_bytes()).hexdigest()
    assert evidence["left_out"]["regression"]["rmse"] < evidence["left_out"]["prior"]["rmse"]
    predicted = [evidence["predicted_error"], *(each["predicted_error"] for each in selection["runners_up"])]
    assert predicted == sorted(predicted)


def test_evidence_that_does_not_predict_says_so_and_changes_no_rank(cli, tmp_path):
    draw = np.random.default_rng(5)
    write_sweep(tmp_path / "mine.csv", lambda d: 40 + draw.normal(), n=30)
    plain = cli("select", "--gflops", 0.4, "--family", "x", "--json", cwd=tmp_path)
    done = cli("select", "--gflops", 0.4, "--family", "x", "--json", "--evidence", "mine.csv", cwd=tmp_path)
    without, data = json.loads(plain.stdout), json.loads(done.stdout)
    assert "evidence" not in without
    assert data["evidence"]["decides"] is False
    assert "the regression is not significantly better" in data["evidence"]["notes"][0]
    assert data["reason"] == without["reason"]
    for mine, theirs in zip(
        (data["pick"], *data["runners_up"]), (without["pick"], *without["runners_up"]), strict=True
    ):
        assert theirs == mine  # a prediction that is no good is not shown beside them


@pytest.fixture
def weights(tmp_path):
    from foreign_weights import as_library, weights_of

    network = find_published("regnetx_002").network
    torch = pytest.importorskip("torch")
    torch.save(as_library("timm", weights_of(network, 10), network), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_weights_of_a_published_network_are_imported(cli, weights, tmp_path):
    words = ["select", "--published", "RegNetX-200MF", "--weights", "w.pth", "--resolution", 64, "-o", "b"]
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("RegNetX-200MF of timm: depths 1 1 4 7")
    bundle = open_bundle(tmp_path / "b")
    assert bundle.is_trained
    assert (bundle.architecture.classes, bundle.preprocessing.crop) == (10, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--published", "regnety_002"], "w.pth does not have the network of regnety_002 (Y, depths 1 1 4 7, "),
        (["--published", "regnetx_003"], "regnetx_003"),
        (["--published", "regnetx_002", "--classes", 10], "--classes is the number of outputs of the weights"),
        (["--published", "regnetx_002", "--family", "x"], "--family applies to a search"),
        (["--gflops", 0.2], "--weights needs --published NAME"),
        ([], "--weights needs --published NAME"),
    ],
)
def test_weights_of_another_network_and_options_without_effect_are_refused(cli_error, weights, tmp_path, words, said):
    assert said in cli_error("select", *words, "--weights", "w.pth", cwd=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["w.pth"]


def test_a_network_of_one_channel_is_selected_for_gray_images(cli, cli_error, tmp_path):
    gray = tmp_path / "gray"
    small = ("select", "--gflops", "0.02", "--resolution", "32", "--classes", "10", "--family", "x")
    assert "at 32 pixels of gray images, 10 classes" in cli(*small, "--channels", "1", "-o", gray).stdout
    bundle = open_bundle(gray)
    assert bundle.architecture.network.input_channels == 1
    assert bundle.preprocessing.colours == "L"
    assert bundle.selection.budget.input_channels == 1
    cli("select", "--published", "RegNetX-200MF", "--channels", "3", "-o", tmp_path / "rgb")
    assert "input_channels" not in open_bundle(tmp_path / "rgb").parts["architecture"]
    cli("select", "--published", "RegNetX-200MF", "--channels", "1", "-o", tmp_path / "named")
    assert open_bundle(tmp_path / "named").architecture.network.input_channels == 1
    assert "'--channels': '2' is not one of '1', '3'" in cli_error(*small, "--channels", "2", "-o", tmp_path / "no")
    of_weights = ("select", "--published", "RegNetX-200MF", "--weights", "a.pth", "--channels", "1")
    assert "--channels is that of the first convolution of the weights: omit it" in cli_error(*of_weights)
