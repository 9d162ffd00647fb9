"""The CUDA session, run for real by the CPU's kernels: the calls are those of ONNX Runtime, only the memory is not."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from regnet_deploy.engines.capture_lock import capture_lock
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.errors import BundleError, ProofError, UsageError
from regnet_deploy.runtimes import cuda_session
from regnet_deploy.runtimes.cuda_session import (
    CUDA,
    CudaSession,
    install_hint,
    open_on_cuda,
    provider_file,
    require_cuda_provider,
)
from regnet_deploy.runtimes.onnx_session import create_session, graph_io, session_options
from tests.conftest import RESOLUTION, tiny_onnx

#: As ONNX Runtime 1.31.1 says it, shortened by some C++.
OLD_DRIVER = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, common::Status> "
    "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; bool THRW = true] CUDA failure 35: CUDA "
    "driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=somebodys ; file=/a.cc ; line=355 ; "
    "expr=cudaSetDevice(info_.device_id); \n\n"
)
SIDE = (3, RESOLUTION, RESOLUTION)


class Watched:
    """A real session that remembers which graph each run asked for."""

    def __init__(self, real: onnxruntime.InferenceSession) -> None:
        self._real, self.bound, self.plain = real, [], []

    def io_binding(self):
        return self._real.io_binding()

    def run_with_iobinding(self, binding, options):
        self.bound.append(options.get_run_config_entry("gpu_graph_id"))
        return self._real.run_with_iobinding(binding, options)

    def run(self, names, feed, options=None):
        self.plain.append(options and options.get_run_config_entry("gpu_graph_id"))
        return self._real.run(names, feed, options)


def sessions(kind: str = "float32", **options) -> tuple[CudaSession, Watched, onnxruntime.InferenceSession]:
    data = tiny_onnx(kind)
    real = create_session(data, session_options(1, exact=False), ["CPUExecutionProvider"])
    watched = Watched(real)
    return (
        CudaSession(watched, graph_io(real), "onnxruntime 1", memory="cpu", **{"graphs": True} | options),
        watched,
        real,
    )


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SIDE), dtype=np.float32)


def test_a_size_that_comes_often_gets_a_graph_and_the_same_logits():
    session, watched, real = sessions()
    for turn in range(6):
        batch = images(4, turn)
        np.testing.assert_array_equal(session.run(batch), real.run(None, {"images": batch})[0])
    # Three as they come, then one that captures, then replays of the same number.
    assert watched.plain == ["-1"] * 3
    assert watched.bound == ["1", "1", "1", "1"]


def test_every_size_has_a_graph_of_its_own_and_they_take_turns():
    session, watched, real = sessions()
    for turn in range(8):
        for count in (1, 3, 8):
            batch = images(count, turn)
            np.testing.assert_array_equal(session.run(batch), real.run(None, {"images": batch})[0])
    assert set(watched.bound) == {"1", "2", "3"}
    assert watched.bound[-3:] == ["1", "2", "3"]


def test_answers_are_not_overwritten_by_the_next_replay():
    session, _, real = sessions()
    batches = [images(2, turn) for turn in range(7)]
    answers = [session.run(batch) for batch in batches]
    for batch, logits in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(logits, real.run(None, {"images": batch})[0])


def test_rare_sizes_and_those_beyond_the_most_graphs_run_without_one():
    session, watched, _ = sessions()
    for count in range(1, 12):
        for turn in range(5):
            assert session.run(images(count, turn)).shape == (count, 6)
    assert {int(number) for number in watched.bound} == set(range(1, 9))
    before = len(watched.bound)
    session.run(images(11, 0))
    session.run(images(20, 0))
    assert len(watched.bound) == before


def test_pixels_and_arrays_that_are_not_contiguous():
    session, watched, real = sessions("uint8")
    for turn in range(5):
        pixels = np.random.default_rng(turn).integers(0, 256, (2, RESOLUTION, RESOLUTION, 6), dtype=np.uint8)[..., ::2]
        expected = real.run(None, {"images": np.ascontiguousarray(pixels)})[0]
        np.testing.assert_array_equal(session.run(pixels), expected)
    assert watched.bound


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 3, 5, 5), np.float32), np.zeros((4, *SIDE)), np.zeros((4, 3), np.float32)]
)
def test_images_that_do_not_fit_are_refused_before_and_after_capture(bad):
    session, watched, _ = sessions()
    for _ in range(5):
        with pytest.raises(ProofError, match="cannot run images"):
            session.run(bad)
    for turn in range(5):
        session.run(images(4, turn))
    assert watched.bound
    with pytest.raises(ProofError, match="cannot run images"):
        session.run(bad)


class Device:
    """A GPU in which a capture is in CUDA's global mode, as ONNX Runtime 1.32 captures.

    Other work of the process meanwhile fails, and it breaks the capture.
    """

    def __init__(self) -> None:
        self.capturing, self.is_broken = False, False
        self.captures = 0

    def use(self) -> None:
        if self.capturing:
            self.is_broken = True
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing ; GPU=0 ;")

    def capture(self) -> None:
        self.use()
        self.captures += 1
        self.capturing, self.is_broken = True, False
        time.sleep(0.02)  # others get their turn
        self.capturing = False
        if self.is_broken:
            raise RuntimeError(
                "CUDA failure 901: operation failed due to a previous error during capture ; GPU=0 ; more"
            )


class Binding:
    """A binding whose outputs may not be synchronized: that waits for all streams of the device."""

    def __init__(self, real) -> None:
        self.real = real

    def __getattr__(self, name):
        assert name != "synchronize_outputs", "it breaks the capture of another session"
        return getattr(self.real, name)


class OnDevice(Watched):
    """A session whose first run with a new number captures on a :class:`Device`."""

    def __init__(self, real, device: Device) -> None:
        super().__init__(real)
        self.device, self.numbers = device, set()

    def io_binding(self):
        return Binding(super().io_binding())

    def run_with_iobinding(self, binding, options):
        number = options.get_run_config_entry("gpu_graph_id")
        if number == "-1" or number in self.numbers:
            self.device.use()
        else:
            self.device.capture()
            self.numbers.add(number)
        return super().run_with_iobinding(binding.real, options)

    def run(self, names, feed, options=None):
        self.device.use()
        return super().run(names, feed, options)


def on_device(device: Device, graphs: bool = True) -> tuple[CudaSession, OnDevice]:
    real = create_session(tiny_onnx("float32"), session_options(1, exact=False), ["CPUExecutionProvider"])
    watched = OnDevice(real, device)
    return CudaSession(watched, graph_io(real), "onnxruntime 1", memory="cpu", graphs=graphs), watched


def test_sessions_of_a_process_do_not_break_each_others_captures():
    device = Device()
    pairs = [on_device(device) for _ in range(3)]
    failures = []

    def ask(session: CudaSession) -> None:
        try:
            for turn in range(30):
                session.run(images(1 + turn % 3, turn))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(session,)) for session, _ in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert device.captures == 9
    assert all(len(watched.numbers) == 3 for _, watched in pairs)


def test_sessions_are_measured_beside_others():
    device = Device()
    session, _ = on_device(device)
    other, _ = on_device(device, graphs=False)
    stopped = threading.Event()
    failures = []

    def ask() -> None:
        while not stopped.is_set():
            try:
                other.run(images(2, 0))
            except Exception as error:
                failures.append(error)
                return

    thread = threading.Thread(target=ask)
    thread.start()
    for count in (1, 2, 3):
        session.resident(images(count, 0))()
    stopped.set()
    thread.join()
    assert failures == []
    assert device.captures == 3
    other.resident(images(1, 0))()


def test_a_measurement_does_not_capture_while_others_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_session, "_MEASURING_PATIENCE_S", 0.05)
    device = Device()
    session, watched = on_device(device)
    with capture_lock().working():
        call = session.resident(images(2, 0))
    call()
    assert device.captures == 0
    assert watched.bound == ["-1", "-1"]


def test_a_capture_that_something_else_breaks_is_tried_again(caplog):
    device = Device()
    session, watched = on_device(device)
    capture, broken = device.capture, []

    def breaks() -> None:
        if not broken:  # such as a model that is released
            broken.append(True)
            raise RuntimeError("CUDA failure 901: operation failed due to a previous error during capture ; GPU=0 ;")
        capture()

    device.capture = breaks
    with caplog.at_level(logging.WARNING):
        for turn in range(12):
            session.run(images(2, turn))
    assert watched.numbers == {"2"}
    assert not caplog.records


def test_a_session_that_is_being_opened_delays_captures_and_not_requests():
    device = Device()
    session, watched = on_device(device)
    with capture_lock().working():
        for turn in range(5):
            assert session.run(images(2, turn)).shape == (2, 6)
    assert device.captures == 0
    for turn in range(5):
        session.run(images(2, turn))
    assert watched.numbers == {"1"}


def test_a_batch_size_that_cannot_be_captured_is_said_once_and_others_have_graphs(caplog):
    session, watched, real = sessions()
    bound = watched.run_with_iobinding

    def refuses(binding, options):
        if len(binding.get_outputs()[0].numpy()) == 2:
            raise RuntimeError("operation not permitted when stream is capturing\nsecond line")
        return bound(binding, options)

    watched.run_with_iobinding = refuses
    with caplog.at_level(logging.WARNING):
        for turn in range(20):
            for count in (2, 3):
                batch = images(count, turn)
                np.testing.assert_array_equal(session.run(batch), real.run(None, {"images": batch})[0])
    assert [record.getMessage() for record in caplog.records] == [
        "onnxruntime 1 runs batches of 2 without a CUDA graph, 3 captures failed: operation not permitted when stream "
        "is capturing"
    ]
    assert session.graphs
    assert len(watched.bound) == 1 + 20 - 3  # the capture, and a replay for each but the first three
    assert set(watched.plain) == {"-1"}  # without a number ONNX Runtime would capture on its own


def test_a_network_that_cannot_be_captured_is_not_tried_without_end():
    session, watched, _ = sessions()
    tried = []

    def refuses(binding, options):
        tried.append(options.get_run_config_entry("gpu_graph_id"))
        raise RuntimeError("operation not permitted when stream is capturing")

    watched.run_with_iobinding = refuses
    for count in range(1, 13):
        for turn in range(14):
            session.run(images(count, turn))
    assert len(tried) == 8 * 3
    with pytest.raises(ProofError, match="operation not permitted"):
        session.resident(images(1, 0))


def test_without_graphs_every_batch_runs_as_it_comes():
    session, watched, _ = sessions(graphs=False)
    for turn in range(5):
        session.run(images(2, turn))
    assert (watched.plain, watched.bound) == (["-1"] * 5, [])


@pytest.mark.parametrize("graphs", [True, False])
def test_resident_images_are_computed_again_without_a_copy(graphs):
    session, watched, real = sessions(graphs=graphs)
    batch = images(3, 0)
    call = session.resident(batch)
    before = len(watched.bound)
    assert call() is None
    call()
    assert watched.bound[before:] == ["1" if graphs else "-1"] * 2
    for turn in range(5):  # its graph is none of those that requests get
        other = images(3, turn)
        np.testing.assert_array_equal(session.run(other), real.run(None, {"images": other})[0])
    assert ("2" in watched.bound) == graphs
    with pytest.raises(ProofError, match="cannot run images"):
        session.resident(np.zeros((1, 3, 5, 5), np.float32))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OLD_DRIVER.replace("35: CUDA driver version", "2: out of memory; no"), "CUDA failure 2: out of memory"),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node.\n"
            "/bfc_arena.cc:358 Failed to allocate memory for requested buffer of size 41104179200\n",
            "Failed to allocate memory for requested buffer of size 41104179200",
        ),
    ],
)
def test_too_little_memory_is_said_without_the_cpp_around_it(monkeypatch, text, said):
    session, watched, _ = sessions()
    monkeypatch.setattr(cuda_session, "missing_libraries", lambda names: [])

    def fails(names, feed, options=None):
        raise RuntimeError(text)

    watched.run = fails
    with pytest.raises(ProofError) as caught:
        session.run(images(1, 0))
    assert str(caught.value) == f"ONNX Runtime cannot run images float32 (1, 3, 24, 24): {said}"


def test_threads_get_their_own_answers_and_graphs_are_of_one_thread():
    session, watched, real = sessions()
    wrong: list[int] = []
    computing: set[int] = set()

    def bound(binding, options):
        computing.add(threading.get_ident())
        return replay(binding, options)

    replay, watched.run_with_iobinding = watched.run_with_iobinding, bound

    def ask(seed: int) -> None:
        for turn in range(15):
            batch = images(1 + seed % 2, seed * 100 + turn)
            if not np.array_equal(session.run(batch), real.run(None, {"images": batch})[0]):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(computing) == 1  # ONNX Runtime would capture anew in every other


def test_a_missing_cudnn_is_named_when_a_convolution_wants_it(monkeypatch):
    session, watched, _ = sessions()
    monkeypatch.setattr(cuda_session, "missing_libraries", lambda names: list(names))

    def fails(names, feed, options=None):
        raise RuntimeError("cuDNN is not there")

    watched.run = fails
    with pytest.raises(ProofError, match=r"cuDNN is not there; libcudnn\.so\.9 cannot be loaded: pip install"):
        session.run(images(1, 0))


def opened_as(monkeypatch: pytest.MonkeyPatch, provider: str = CUDA, error: Exception | None = None) -> dict:
    """Let ``open_on_cuda`` open on the CPU what it asks for on the GPU, and return how it asked."""
    seen: dict = {}
    real = onnxruntime.InferenceSession

    class Recorded:
        def __init__(self, data, options, providers, enable_fallback):
            entry = options.get_session_config_entry("session.disable_cpu_ep_fallback")
            seen.update(providers=providers, enable_fallback=enable_fallback, cpu=entry)
            seen["level"] = options.graph_optimization_level
            if error is not None:
                raise error
            self._session = real(data, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [provider, "CPUExecutionProvider"]

        def __getattr__(self, name):
            return getattr(self._session, name)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    monkeypatch.setattr(cuda_session, "require_cuda_provider", lambda ort, name, version: None)
    return seen


def test_cuda_gets_true_fp32_quick_algorithms_graphs_and_no_way_to_the_cpu(monkeypatch: pytest.MonkeyPatch):
    seen = opened_as(monkeypatch)
    session = open_on_cuda(tiny_onnx("float32"), "1.31.1", threads=1)
    assert (session.device, session.runtime, session.graphs) == ("cuda:0", "onnxruntime 1.31.1", True)
    settings = {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "prefer_nhwc": "0",
        "enable_cuda_graph": "1",
    }
    assert (seen["providers"], seen["enable_fallback"], seen["cpu"]) == ([(CUDA, settings)], 0, "1")
    open_on_cuda(tiny_onnx("float32"), "1.31.1", threads=1, exhaustive=True)
    assert seen["providers"][0][1] == settings | {"cudnn_conv_algo_search": "EXHAUSTIVE"}
    open_on_cuda(tiny_onnx("float32"), "1.31.1", threads=1, exact=True, tf32=True, nhwc=True, graphs=False)
    assert seen["providers"][0][1] == settings | {"use_tf32": "1", "prefer_nhwc": "1", "enable_cuda_graph": "0"}
    assert seen["level"] == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_a_session_on_another_provider_is_an_error(monkeypatch: pytest.MonkeyPatch):
    opened_as(monkeypatch, provider="CPUExecutionProvider")
    with pytest.raises(UsageError, match=r"fell back to CPUExecutionProvider.*nvidia-smi"):
        open_on_cuda(tiny_onnx("float32"), "1.31.1", threads=1)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("nodes that are assigned to the default CPU EP, but fallback to CPU EP has been disabled", UsageError, "part"),
        ("compute graph nodes have not been partitioned to the CUDAExecutionProvider", UsageError, "part of this"),
        ("Could not find an implementation for Conv(22)", BundleError, r"cannot open the network.*Conv\(22\)"),
        (OLD_DRIVER, UsageError, r"cannot use the GPU: CUDA failure 35: CUDA driver .* CUDA runtime version: check"),
    ],
)
def test_what_does_not_open_on_the_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch, text, kind, said):
    opened_as(monkeypatch, error=RuntimeError(f"{text}\nmore"))
    monkeypatch.setattr(cuda_session, "missing_libraries", lambda names: [])
    with pytest.raises(kind, match=said) as caught:
        open_on_cuda(tiny_onnx("float32"), "1.31.1", threads=1)
    assert "\n" not in str(caught.value)


def test_the_missing_libraries_are_named_with_the_commands_that_bring_them(monkeypatch: pytest.MonkeyPatch, tmp_path):
    file = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    file.parent.mkdir()
    file.touch()
    printed = "Failed to load libcublasLt.so.13"
    loaded = []
    ort = SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        preload_dlls=lambda: loaded.append(print(printed)),
        # Builds with plugins list a provider when its libraries are loaded.
        get_available_providers=lambda: [CUDA, "CPUExecutionProvider"] if loaded else ["CPUExecutionProvider"],
    )
    assert provider_file(ort, CUDA, "1.31.1") == file
    monkeypatch.setattr(
        cuda_session, "needed_libraries", lambda path: ["libno_such.so.13", "libcuda.so.1", "libc.so.6"]
    )
    monkeypatch.setattr(
        cuda_session, "missing_libraries", lambda names: [name for name in names if name != "libc.so.6"]
    )
    with pytest.raises(UsageError) as caught:
        require_cuda_provider(ort, CUDA, "1.31.1")
    assert str(caught.value) == (
        "ONNX Runtime 1.31.1 cannot use the GPU: libno_such.so.13, libcuda.so.1 cannot be loaded: pip install "
        "'onnxruntime-gpu[cuda,cudnn]', and install the NVIDIA driver, or --device cpu"
    )


def test_the_missing_driver_is_no_matter_of_pip():
    assert "pip" not in install_hint(["libcuda.so.1"])
    assert "--gpus all" in install_hint(["libcuda.so.1"])


def test_what_it_calls_is_what_the_installed_onnxruntime_has():
    assert callable(onnxruntime.preload_dlls)
    assert Path(onnxruntime.__file__).with_name("capi").is_dir()
    assert CUDA in onnxruntime.get_all_providers()


def test_onnxruntime_does_not_look_at_the_type_of_what_it_copies():
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type([2, 3], np.float32, "cpu", 0)
    value.update_inplace(np.ones((2, 3)))  # half of the float64: why a batch of another type gets no graph
    assert not np.array_equal(value.numpy(), np.ones((2, 3)))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_a_gpu_replays_graphs_of_several_sizes_with_the_logits_of_the_cpu(kind):
    if find_gpu() is None:
        pytest.skip("needs a CUDA device")
    try:
        provider_file(onnxruntime, CUDA, onnxruntime.__version__)
    except UsageError:
        pytest.skip("needs onnxruntime-gpu (extra [gpu])")
    data = tiny_onnx(kind)
    session = open_on_cuda(data, onnxruntime.__version__, threads=1)
    reference = create_session(data, session_options(1, exact=False), ["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for _ in range(6):
        for count in (1, 8, 3):
            if kind == "uint8":
                batch = random.integers(0, 256, (count, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
            else:
                batch = random.standard_normal((count, *SIDE), dtype=np.float32)
            expected = reference.run(None, {"images": batch})[0]
            np.testing.assert_allclose(session.run(batch), expected, rtol=1e-3, atol=1e-4)
    assert session.graphs
    assert len(session._captured) == 3
