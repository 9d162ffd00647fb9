import sys
from pathlib import Path

import onnx
import pytest

from regnet_deploy.bundle import Bundle, read_bundle, reading, update_bundle
from regnet_deploy.cli.main import run
from regnet_deploy.errors import BundleError
from regnet_deploy.runtimes.golden_set import GoldenSet, golden_to_bytes, load_golden

FILE = "golden.safetensors"


@pytest.fixture
def replaced(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[Bundle]:
    """Another command replaces the files between the first reading of the manifest and theirs; lists the openings."""
    openings: list[Bundle] = []
    real = reading.open_bundle

    def open_bundle(path: str | Path) -> Bundle:
        bundle = real(path)
        if not openings:
            golden = load_golden(bundle)
            files = {FILE: golden_to_bytes(GoldenSet(golden.images[::-1], golden.logits[::-1]))}
            for name in ("onnx-fp32.onnx", "onnx-fp32-uint8.onnx"):
                model = onnx.load_from_string(bundle.read(name))
                model.doc_string = "exported again"
                files[name] = model.SerializeToString()
            update_bundle(path, {"labels": list("abcdef")}, files)
        openings.append(bundle)
        return bundle

    monkeypatch.setattr(reading, "open_bundle", open_bundle)
    return openings


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(exported_bundle: Path, replaced: list[Bundle]):
    assert read_bundle(exported_bundle, lambda bundle: (bundle.read(FILE), bundle.parts["labels"]))[1] == list("abcdef")
    assert len(replaced) == 2


def test_a_bundle_that_nobody_replaced_keeps_its_error(exported_bundle: Path):
    tries = []

    def use(bundle: Bundle) -> bytes:
        tries.append(bundle)
        bundle.stored_path(FILE).unlink(missing_ok=True)
        return bundle.read(FILE)

    with pytest.raises(BundleError, match="restore the file"):
        read_bundle(exported_bundle, use)
    assert len(tries) == 1


@pytest.mark.usefixtures("replaced")
def test_verify_looks_again(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as ended:
        run(["verify", str(exported_bundle)])
    assert ended.value.code == 0, capsys.readouterr()


@pytest.mark.usefixtures("replaced")
def test_predict_looks_again(exported_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    Image.new("RGB", (24, 24), "teal").save(tmp_path / "teal.png")
    with pytest.raises(SystemExit) as ended:
        run(["predict", str(exported_bundle), str(tmp_path / "teal.png")])
    assert ended.value.code == 0, capsys.readouterr()


@pytest.mark.usefixtures("replaced")
def test_serve_looks_again(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    served = []
    monkeypatch.setattr("regnet_deploy.serving.server.serve", lambda *arguments: served.append(arguments[0]))
    with pytest.raises(SystemExit) as ended:
        run(["serve", str(exported_bundle), "--port", "0"])
    assert ended.value.code == 0
    assert served[0].opened[0].interface.labels == tuple("abcdef")
