import json
import os
import subprocess
import sys
import threading
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import BundleError, MissingExtra, ProofError, UsageError
from regnet_deploy.runtimes.gates import gate_of
from regnet_deploy.runtimes.golden_set import load_golden, replay
from regnet_deploy.runtimes.openvino_session import open_by_openvino
from regnet_deploy.runtimes.runtime import open_onnx, open_variant
from tests.conftest import tiny_onnx

# Not importorskip: importing it as it is reports that.
pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO (extra [openvino])")


def network(bundle: Path, name: str = "onnx-fp32") -> bytes:
    return open_bundle(bundle).read(f"{name}.onnx")


def images_of(count: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 24, 24), dtype=np.float32)


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp32-uint8"])
def test_every_input_passes_the_gate_of_fp32_on_the_golden_set(exported_bundle: Path, name: str):
    bundle = open_bundle(exported_bundle)
    session = open_variant(bundle, name, runtime="openvino")
    agreement = replay(
        session, load_golden(bundle), Preprocessing.from_json(bundle.parts["preprocessing"]), gate_of("fp32"), 5
    )
    assert agreement.passed, agreement
    assert session.runtime == f"openvino {metadata.version('openvino')}"
    assert (session.device, session.input) == ("cpu", "uint8" if name.endswith("uint8") else "float32")
    assert (session.input_name, session.output_name) == ("images", "logits")


def test_any_number_of_images_goes_through_one_session(exported_bundle: Path):
    data = network(exported_bundle)
    session, wanted = open_by_openvino(data, threads=1), open_onnx(data, threads=1)
    for count in (1, 7, 2, 33, 0, 1):
        images = images_of(count)
        logits = session.run(images)
        assert (logits.shape, logits.dtype) == ((count, 6), np.float32)
        if count:
            np.testing.assert_allclose(logits, wanted.run(images), rtol=1e-5, atol=1e-5)


def test_it_computes_in_fp32_with_the_threads_and_streams_that_were_asked_for(exported_bundle: Path):
    session = open_by_openvino(network(exported_bundle), threads=1, callers=2)
    session.run(images_of(2))
    for compiled in session._compiled:
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert compiled.get_property("NUM_STREAMS") == 2


def test_single_images_have_a_network_of_their_own_with_the_same_logits(exported_bundle: Path):
    session, images = open_by_openvino(network(exported_bundle), threads=1), images_of(3)
    alone = np.concatenate([session.run(image[None]) for image in images])
    assert session._compiled[1] is None  # compiled for the first batch
    np.testing.assert_allclose(session.run(images), alone, rtol=1e-5, atol=1e-5)
    shapes = [str(compiled.inputs[0].get_partial_shape()) for compiled in session._compiled]
    assert shapes == ["[1,3,24,24]", "[?,3,24,24]"]


def test_images_that_may_not_be_written_or_lie_otherwise_give_the_same_logits(exported_bundle: Path):
    session, images = open_by_openvino(network(exported_bundle), threads=1), images_of(4)
    wanted = session.run(images)
    read_only = np.frombuffer(images.tobytes(), np.float32).reshape(images.shape)
    channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for other in (read_only, channels_last, np.repeat(images, 2, axis=0)[::2]):
        np.testing.assert_array_equal(session.run(other), wanted)


def test_logits_are_the_callers_own(exported_bundle: Path):
    session = open_by_openvino(network(exported_bundle), threads=1)
    first = session.run(images_of(2, seed=1))
    kept = first.copy()
    session.run(images_of(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_threads_that_call_it_at_once_get_their_own_answers(exported_bundle: Path):
    session = open_by_openvino(network(exported_bundle), threads=1, callers=2)
    batches = [images_of(1 + seed % 3, seed) for seed in range(6)]
    wanted = [session.run(batch) for batch in batches]
    wrong: list[str] = []

    def call(batch: np.ndarray, logits: np.ndarray) -> None:
        for _ in range(40):
            if np.abs(session.run(batch) - logits).max() > 1e-5:
                wrong.append(str(batch.shape))

    threads = [threading.Thread(target=call, args=pair) for pair in zip(batches, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(len(idle) <= len(threads) for idle in session._idle)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 5, 5), np.float32),
        np.zeros((1, 3, 24, 24), np.float64),
        np.zeros((1, 3), np.float32),
        np.zeros((1, 3, 24, 24), object),
    ],
)
def test_images_that_do_not_fit_are_one_line_and_the_session_goes_on(exported_bundle: Path, images: np.ndarray):
    session = open_by_openvino(network(exported_bundle), threads=1)
    with pytest.raises(ProofError, match="OpenVINO cannot run images") as error:
        session.run(images)
    assert "\n" not in str(error.value)
    assert "Exception from" not in str(error.value)
    assert session.run(images_of(2)).shape == (2, 6)


@pytest.mark.parametrize("data", [b"", b"\x00" * 50, b"nonsense" * 20])
def test_a_file_that_is_no_network_is_one_line(data: bytes):
    with pytest.raises(BundleError) as error:
        open_by_openvino(data, threads=1)
    assert "\n" not in str(error.value)
    assert "Exception from" not in str(error.value)


def test_an_operator_that_nobody_knows_is_one_line():
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Brew", ["x"], ["y"], domain="tea")], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(BundleError, match=r"^OpenVINO .* cannot open the network: .*Brew") as error:
        open_by_openvino(model.SerializeToString(), threads=1)
    assert "\n" not in str(error.value)


def test_a_network_with_other_ends_is_refused():
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(BundleError, match="does not map one batch of images"):
        open_by_openvino(model.SerializeToString(), threads=1)


def test_tensors_in_other_files_are_refused_before_openvino_sees_them():
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="/etc/passwd")
    model = helper.make_model(helper.make_graph([], "g", [], [], [weight]))
    with pytest.raises(BundleError, match="external data"):
        open_by_openvino(model.SerializeToString(), threads=1)


def test_exact_is_not_for_openvino(exported_bundle: Path):
    with pytest.raises(UsageError, match="always fuses operators"):
        open_onnx(network(exported_bundle), runtime="openvino", exact=True)


def test_without_openvino_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, exported_bundle: Path):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MissingExtra, match=r"pip install 'regnet-deploy\[openvino\]'"):
        open_by_openvino(network(exported_bundle), threads=1)


#: Prints what a process that opens and runs a network by OpenVINO wrote, connected to, started and imported.
WATCHED = """
import sys, time
seen = []
OUT = ("socket.connect", "socket.getaddrinfo", "subprocess.", "os.fork", "os.posix_spawn", "os.mkdir")
def watch(event, args):
    if event.startswith(OUT):
        seen.append(event)
    elif event == "open" and isinstance(args[2], int) and args[2] & 0x43 and str(args[0]) != "/dev/null":
        if "__pycache__" not in str(args[0]):
            seen.append(f"open {args[0]}")
sys.addaudithook(watch)
import json, threading
from regnet_deploy.bundle import open_bundle
from regnet_deploy.runtimes.runtime import open_variant
import numpy as np
bundle = open_bundle(sys.argv[1])
open_variant(bundle, "onnx-fp32", threads=1).run(np.zeros((1, 3, 24, 24), np.float32))
early = "openvino" in sys.modules
open_variant(bundle, "onnx-fp32", threads=1, runtime="openvino").run(np.zeros((1, 3, 24, 24), np.float32))
time.sleep(0.3)  # a report would be sent by a thread of its own
import openvino
reporting = [name for name in sys.modules if "telemetry" in name]
threads = [thread.name for thread in threading.enumerate()]
print(json.dumps({"seen": seen, "early": early, "reporting": reporting, "threads": threads}))
"""


def test_openvino_is_imported_when_chosen_and_reports_writes_and_starts_nothing(exported_bundle: Path, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    where = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")}
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | where
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(exported_bundle)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"seen": [], "early": False, "reporting": [], "threads": ["MainThread"]}
    assert done.stderr == ""
    assert list(home.rglob("*")) == []


_REPLACED_BY_ANOTHER_THREAD = """
import gc, os, signal, sys, threading
import numpy as np
from regnet_deploy.runtimes.openvino_session import open_by_openvino

signal.signal(signal.SIGTERM, lambda *_: print("handled"))
sessions = [open_by_openvino(open(sys.argv[1], "rb").read(), threads=1)]
sessions[0].run(np.zeros((2, 3, 24, 24), np.float32))
closing = threading.Thread(target=lambda: (sessions.clear(), gc.collect()))
closing.start()
closing.join()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_process_survives_a_signal_after_another_thread_has_closed_a_network(tmp_path):
    file = tmp_path / "network.onnx"
    file.write_bytes(tiny_onnx("float32"))
    done = subprocess.run([sys.executable, "-c", _REPLACED_BY_ANOTHER_THREAD, file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
