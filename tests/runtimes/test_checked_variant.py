import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.errors import BundleError, ProofError
from regnet_deploy.runtimes import checked_variant as module
from regnet_deploy.runtimes.checked_variant import open_checked_variant
from regnet_deploy.runtimes.golden_set import FILE, GoldenSet, golden_to_bytes, load_golden


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the markers, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "regnet-deploy" / "golden-sets"


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtimes by which golden sets are replayed, in their order."""
    seen: list[str] = []
    original = module.replay
    monkeypatch.setattr(
        module, "replay", lambda session, *rest: seen.append(session.runtime) or original(session, *rest)
    )
    return seen


def open_it(path: Path, name: str = "onnx-fp32", **options: Any) -> Any:
    return open_checked_variant(open_bundle(path), name, threads=1, device="cpu", **options)


def change_golden_set(path: Path, by: float) -> None:
    golden = load_golden(open_bundle(path))
    logits = golden.logits.copy()
    logits[0, 0] += by
    update_bundle(path, {}, {FILE: golden_to_bytes(GoldenSet(golden.images, logits))})


def test_the_golden_set_is_replayed_once(exported_bundle: Path, cache: Path, replays: list[str]):
    images = np.zeros((1, 3, 24, 24), np.float32)
    first, second = open_it(exported_bundle).run(images), open_it(exported_bundle).run(images)
    assert len(replays) == 1
    np.testing.assert_array_equal(first, second)
    (marker,) = cache.iterdir()
    assert json.loads(marker.read_text())["runtime"] == replays[0]


def test_what_is_remembered_is_not_read_again(exported_bundle: Path, cache: Path):
    bundle = open_bundle(exported_bundle)
    open_it(exported_bundle)
    bundle.stored_path(FILE).write_bytes(b"damaged")
    open_it(exported_bundle)
    with pytest.raises(BundleError, match="is damaged"):
        open_it(exported_bundle, "onnx-fp32-uint8")


def test_a_variant_that_disagrees_is_refused_every_time(exported_bundle: Path, cache: Path, replays: list[str]):
    change_golden_set(exported_bundle, 0.5)
    for times in (1, 2):
        with pytest.raises(
            ProofError, match=r"^variant onnx-fp32 of \S+ does not agree with its golden set: \|error\| "
        ):
            open_it(exported_bundle)
        assert len(replays) == times
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_model", lambda: "Z80"),
        ("cpu_instructions", lambda: ("avx2",)),
        ("__version__", "99.0"),
    ],
)
def test_another_machine_or_program_replays_it_again(
    exported_bundle: Path, cache: Path, replays: list[str], monkeypatch: pytest.MonkeyPatch, name: str, value: Any
):
    open_it(exported_bundle)
    monkeypatch.setattr(module, name, value)
    open_it(exported_bundle)
    open_it(exported_bundle)
    assert len(replays) == 2


def by_release(monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    """Let sessions have another release."""
    original = module.open_variant

    def opened(*arguments: Any, **options: Any) -> Any:
        session = original(*arguments, **options)
        session.runtime = runtime
        return session

    monkeypatch.setattr(module, "open_variant", opened)


def test_another_release_another_golden_set_and_another_file_are_replayed(
    exported_bundle: Path, cache: Path, replays: list[str], monkeypatch: pytest.MonkeyPatch
):
    open_it(exported_bundle)
    open_it(exported_bundle, "onnx-fp32-uint8")
    change_golden_set(exported_bundle, 1e-6)
    open_it(exported_bundle)
    by_release(monkeypatch, "onnxruntime 1.22.0")
    open_it(exported_bundle)
    assert len(replays) == len(set(cache.iterdir())) == 4


@pytest.mark.parametrize("place", ["/dev/null/cache", "/proc/cache"])
def test_without_a_folder_that_can_be_written_it_is_replayed_every_time(
    exported_bundle: Path, replays: list[str], monkeypatch: pytest.MonkeyPatch, place: str
):
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    open_it(exported_bundle)
    open_it(exported_bundle)
    assert len(replays) == 2


def test_several_at_the_same_time_agree(exported_bundle: Path, cache: Path):
    opened: list[Any] = []
    threads = [threading.Thread(target=lambda: opened.append(open_it(exported_bundle))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert len(list(cache.iterdir())) == 1


def refusal(path: Path, name: str = "onnx-fp32", **options: Any) -> str:
    with pytest.raises(ProofError) as raised:
        open_it(path, name, **options)
    (line,) = str(raised.value).splitlines()
    return line


def proved_by(path: Path, runtime: str, *names: str) -> None:
    """Let the proofs be of another runtime, and keep only these variants."""
    variants = open_bundle(path).manifest.variants
    changed = {name: variants[name].replace(proof=variants[name].proof.replace(runtime=runtime)) for name in names}
    update_bundle(path, {"variants": changed})
    change_golden_set(path, 0.5)


def test_a_refusal_names_another_variant_and_the_upgrade_of_an_older_release(
    exported_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    proved_by(exported_bundle, "onnxruntime 99.1", "onnx-fp32", "onnx-fp32-uint8")
    assert refusal(exported_bundle).endswith(
        " on cpu - choose --variant onnx-fp32-uint8, or pip install --upgrade onnxruntime (it was proved by "
        "onnxruntime 99.1)"
    )


def test_a_refusal_names_the_export_where_no_release_is_newer(exported_bundle: Path, cache: Path):
    proved_by(exported_bundle, "onnxruntime 1.2.3", "onnx-fp32")
    export = f"`regnet-deploy export --data DIR {exported_bundle}`"
    assert refusal(exported_bundle).endswith(f" on cpu - export it again on this machine: {export}")


def test_a_refusal_names_the_runtime_of_the_proof(exported_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    proved_by(exported_bundle, "onnxruntime 1.2.3", "onnx-fp32")
    by_release(monkeypatch, "openvino 2026.1")
    assert refusal(exported_bundle).endswith(
        " by openvino 2026.1 on cpu - choose --runtime onnxruntime (it was proved by onnxruntime 1.2.3)"
    )


def test_an_engine_is_replayed_once_on_each_gpu(
    with_h100_engine: Any, cache: Path, replays: list[str], fake_machine: Any
):
    for _ in range(2):
        open_checked_variant(open_bundle(with_h100_engine), "trt-fp32")
    assert len(replays) == 1
    (marker,) = cache.iterdir()
    assert json.loads(marker.read_text())["gpu"][0] == fake_machine.H100.name
