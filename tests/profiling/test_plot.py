import re

import pytest
from bundle_parts import latency, profile

from regnet_deploy.bundle.measurements import StageCount
from regnet_deploy.errors import UsageError
from regnet_deploy.plotting import check_plot_path
from regnet_deploy.profiling.plot import plot_profile

STAGES = tuple(
    StageCount(stage=stage, macs=500, parameters=50, activations=5, fvcore_total=505) for stage in ("stem", "head")
)


def profile_of(runtimes, batches):
    measured = profile(
        *(
            latency(variant, batch, batch * 1.0, runtime=runtime, p95_ms=batch * 1.1, p99_ms=batch * 1.2)
            for batch in batches
            for runtime, variant in runtimes
        )
    )
    return measured.replace(complexity=measured.complexity.replace(stages=STAGES))


@pytest.mark.parametrize(("suffix", "starts"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_picture_is_of_the_kind_that_its_name_says(tmp_path, suffix, starts):
    path = tmp_path / f"profile{suffix}"
    plot_profile(profile_of([("torch 2", None), ("onnxruntime 1", "onnx-fp32")], [1, 8]), "RegNetX-1MF", path)
    assert path.read_bytes().startswith(starts)


def test_the_picture_names_network_units_runtimes_and_machine(tmp_path):
    path = tmp_path / "profile.svg"
    plot_profile(profile_of([("torch 2", None), ("onnxruntime 1", "onnx-fp32")], [1, 8]), "RegNetX-1MF", path)
    texts = re.findall(r"<!-- (.*?) -->", path.read_text())  # matplotlib writes each text beside its outlines
    assert any("RegNetX-1MF at 32 pixels" in text for text in texts)
    for wanted in (
        "share of the network (%)",
        "latency of a batch (ms)",
        "throughput (images/s)",
        "batch (images)",
        "torch 2",
        "onnxruntime 1, onnx-fp32",
        "Measured on a CPU, 2 CPU threads.",
    ):
        assert wanted in texts


def test_one_runtime_and_one_batch_is_enough(tmp_path):
    plot_profile(profile_of([("torch 2", None)], [3]), "tiny", tmp_path / "profile.png")


@pytest.mark.parametrize(("name", "reason"), [("p.gif", "a figure is written as"), ("none/p.png", "no folder")])
def test_a_path_that_cannot_be_drawn_to_is_refused_first(tmp_path, name, reason):
    with pytest.raises(UsageError, match=reason):
        check_plot_path(tmp_path / name)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "p.png").mkdir()
    with pytest.raises(UsageError, match=r"p\.png is a folder"):
        plot_profile(profile_of([("torch 2", None)], [1]), "tiny", tmp_path / "p.png")


def test_of_one_batch_size_no_curve_is_drawn(tmp_path):
    path = tmp_path / "profile.svg"
    plot_profile(profile_of([("torch 2", None)], [8]), "RegNetX-1MF", path)
    texts = re.findall(r"<!-- (.*?) -->", path.read_text())
    assert "share of the network (%)" in texts
    assert "throughput (images/s)" not in texts
