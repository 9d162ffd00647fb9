import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.inspection import check_types
from regnet_deploy.engines.library import Library
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.errors import BundleError, ProofError, RegnetDeployError


@pytest.fixture
def wanted(onnx_of, images):
    """The logits of the FP32 file."""
    session = onnxruntime.InferenceSession(onnx_of("fp32"), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 11])
def test_any_number_of_images_gives_the_logits_of_the_file(machine, onnx_of, images, wanted, count):
    session = machine.session(onnx_of("fp32"))
    for _ in range(4):  # plain, captured, replayed, replayed
        logits = session.run(images[:count])
        assert logits.shape == (count, wanted.shape[1])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, wanted[:count], atol=1e-5)


def test_a_session_says_what_it_is(machine, onnx_of):
    session = machine.session(onnx_of("fp32"))
    assert (session.runtime, session.device) == (str(machine.library), "cuda:0 (NVIDIA H100 80GB HBM3)")
    assert (session.input, session.input_name, session.output_name) == ("float32", "images", "logits")
    assert session.max_batch == 4


def test_a_batch_size_is_a_graph_from_its_third_time_on(machine, onnx_of, images, wanted):
    session, cuda = machine.session(onnx_of("fp32")), machine.cuda
    for size, replayed in ((2, 0), (3, 0), (2, 0), (3, 0), (2, 1), (3, 2), (1, 2), (2, 3)):
        np.testing.assert_allclose(session.run(images[:size]), wanted[:size], atol=1e-5)
        assert cuda.replayed == replayed
    assert session.uncaptured == {}


def test_replayed_logits_are_of_the_new_images_and_are_the_callers_own(machine, onnx_of, images, wanted):
    session = machine.session(onnx_of("fp32"))
    first, second, third = (session.run(images[i : i + 2]) for i in (0, 2, 4))
    for logits, start in ((first, 0), (second, 2), (third, 4)):
        np.testing.assert_allclose(logits, wanted[start : start + 2], atol=1e-5)


def test_sizes_beyond_the_most_graphs_run_without_one(machine, onnx_of, images, monkeypatch):
    monkeypatch.setattr("regnet_deploy.engines.session._MAX_GRAPHS", 1)
    session = machine.session(onnx_of("fp32"))
    for size in (1, 2, 1, 2, 1, 2, 1):
        session.run(images[:size])
    assert machine.cuda.replayed == 2


def test_a_size_that_cannot_be_captured_runs_all_the_same_and_says_why(machine, onnx_of, images, wanted):
    session = machine.session(onnx_of("fp32"))
    machine.cuda.fails["cudaStreamEndCapture"] = "cudaErrorStreamCaptureInvalidated"
    for _ in range(4):
        np.testing.assert_allclose(session.run(images[:2]), wanted[:2], atol=1e-5)
    assert list(session.uncaptured) == [2]
    assert "cudaErrorStreamCaptureInvalidated" in session.uncaptured[2]


def test_an_engine_that_says_it_cannot_be_captured_is_not(machine, onnx_of, images, monkeypatch):
    monkeypatch.setattr(
        machine.trt.IExecutionContext, "is_stream_capturable", lambda self, stream: False, raising=False
    )
    session = machine.session(onnx_of("fp32"))
    for _ in range(3):
        session.run(images[:2])
    assert "cannot be captured" in session.uncaptured[2]
    assert "cudaStreamBeginCapture" not in machine.cuda.calls


def test_a_smaller_batch_than_the_smallest_is_filled_up(machine, onnx_of, images, wanted):
    session = machine.session(onnx_of("fp32"), EngineOptions(min_batch=3, tuned_batch=3, max_batch=4))
    for count in (1, 2, 5):
        np.testing.assert_allclose(session.run(images[:count]), wanted[:count], atol=1e-5)


def test_several_threads_get_their_own_logits(machine, onnx_of, images, wanted):
    session = machine.session(onnx_of("fp32"))
    with ThreadPoolExecutor(8) as pool:
        starts = [i % 9 for i in range(60)]
        found = list(pool.map(lambda i: session.run(images[i : i + 2]), starts))
    for start, logits in zip(starts, found, strict=True):
        np.testing.assert_allclose(logits, wanted[start : start + 2], atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (2, 32, 32, 3), (3, 32, 32)])
def test_images_of_another_size_are_one_line(machine, onnx_of, shape):
    session = machine.session(onnx_of("fp32"))
    with pytest.raises(ProofError, match=r"cannot run images \(.*\): it takes \(n, 3, 32, 32\)"):
        session.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "damage", [lambda plan: plan[:-1000], lambda plan: plan[:40], lambda plan: b"", lambda plan: b"\0" + plan]
)
def test_a_plan_that_is_not_whole_is_one_line(machine, onnx_of, damage):
    plan = damage(machine.build(onnx_of()))
    with pytest.raises(
        RegnetDeployError, match="does not load the engine on NVIDIA H100 80GB HBM3: Serialization"
    ) as caught:
        EngineSession(machine.library, machine.gpu, plan, EngineOptions.up_to(4))
    assert "\n" not in str(caught.value)


def test_code_in_a_plan_stays_disallowed(machine, onnx_of, monkeypatch):
    allowed = []
    load = machine.trt.Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        machine.trt.Runtime,
        "deserialize_cuda_engine",
        lambda self, plan: allowed.append(self.engine_host_code_allowed) or load(self, plan),
    )
    machine.session(onnx_of())
    assert allowed == [False]


def test_a_gpu_without_memory_for_it_is_one_line(machine, onnx_of):
    machine.cuda.limit = 1000
    with pytest.raises(
        RegnetDeployError,
        match=r"MiB of pinned memory could not be allocated: out of memory; end other programs on the GPU",
    ):
        machine.session(onnx_of())


def test_a_context_that_cannot_be_made_is_one_line(machine, onnx_of, monkeypatch):
    monkeypatch.setattr(machine.trt.ICudaEngine, "create_execution_context", lambda self, strategy: None)
    with pytest.raises(RegnetDeployError, match=r"does not start the engine on cuda:0 .*: no reason given"):
        machine.session(onnx_of())


def test_a_gpu_that_fails_in_the_middle_is_one_line_and_the_next_batch_runs(machine, onnx_of, images, wanted):
    session = machine.session(onnx_of("fp32"))
    run = machine.trt.IExecutionContext.execute_async_v3
    machine.trt.IExecutionContext.execute_async_v3 = lambda self, stream: False
    with pytest.raises(RegnetDeployError, match="does not run the engine on cuda:0"):
        session.run(images[:2])
    machine.trt.IExecutionContext.execute_async_v3 = run
    np.testing.assert_allclose(session.run(images[:2]), wanted[:2], atol=1e-5)


def test_reasons_of_earlier_failures_are_not_told_again(machine, onnx_of, images, monkeypatch):
    session, run = machine.session(onnx_of("fp32")), machine.trt.IExecutionContext.execute_async_v3
    reasons = iter(["the first", "the second"])

    def fails(self, stream):
        self.error_recorder.report_error(machine.trt.ErrorCodeTRT.FAILED_EXECUTION, next(reasons))
        return False

    monkeypatch.setattr(machine.trt.IExecutionContext, "execute_async_v3", fails)
    for reason in ("the first", "the second"):
        with pytest.raises(RegnetDeployError, match=rf"does not run the engine on cuda:0 \(NVIDIA.*\): {reason}$"):
            session.run(images[:2])
    monkeypatch.setattr(machine.trt.IExecutionContext, "execute_async_v3", run)
    assert session.run(images[:2]).shape == (2, 5)


def test_memory_that_is_short_for_a_graph_is_no_failure(machine, onnx_of, images, wanted, monkeypatch):
    session, create = machine.session(onnx_of("fp32")), machine.trt.ICudaEngine.create_execution_context
    monkeypatch.setattr(machine.trt.ICudaEngine, "create_execution_context", lambda self, strategy: None)
    for _ in range(4):
        np.testing.assert_allclose(session.run(images[:2]), wanted[:2], atol=1e-5)
    assert "does not start the engine" in session.uncaptured[2]
    monkeypatch.setattr(machine.trt.ICudaEngine, "create_execution_context", create)
    for _ in range(3):
        session.run(images[:3])
    assert machine.cuda.replayed == 1


class TestResident:
    """Images on the GPU, for measurements."""

    def test_it_computes_what_is_there_each_time_by_a_graph_that_lives(self, machine, onnx_of, images, monkeypatch):
        session, computed = machine.session(onnx_of("fp32")), []
        compute = machine.trt.ICudaEngine._compute
        monkeypatch.setattr(
            machine.trt.ICudaEngine,
            "_compute",
            lambda self, addresses, batch: computed.append((dict(addresses), batch)) or compute(self, addresses, batch),
        )
        call = session.resident(images[:3])
        del session
        gc.collect()
        computed.clear()
        call(), call()
        assert machine.cuda.replayed == 2
        assert [batch for _, batch in computed] == [3, 3]
        assert machine.cuda.calls[-1] == "cudaStreamSynchronize"
        assert "cudaMemcpyAsync" not in machine.cuda.calls[-4:]  # nothing is copied

    def test_the_logits_are_left_on_the_gpu(self, machine, onnx_of, images, wanted, fakes):
        session = machine.session(onnx_of("fp32"))
        addresses = []
        context = session._context
        session._context = lambda ends: addresses.append(ends) or context(ends)
        session.resident(images[:3])()
        np.testing.assert_allclose(fakes.view(addresses[0][1], (3, 5)), wanted[:3], atol=1e-5)

    def test_others_run_between(self, machine, onnx_of, images, wanted):
        session = machine.session(onnx_of("fp32"))
        call = session.resident(images[4:6])
        for _ in range(4):
            call()
            np.testing.assert_allclose(session.run(images[:2]), wanted[:2], atol=1e-5)

    def test_without_a_graph_it_runs_and_says_why(self, machine, onnx_of, images):
        session = machine.session(onnx_of("fp32"))
        machine.cuda.fails["cudaStreamEndCapture"] = "cudaErrorStreamCaptureInvalidated"
        session.resident(images[:2])()
        assert "cudaErrorStreamCaptureInvalidated" in session.uncaptured[2]
        assert machine.cuda.replayed == 0

    @pytest.mark.parametrize("count", [0, 5])
    def test_more_than_it_takes_at_once_is_one_line(self, machine, onnx_of, images, count):
        with pytest.raises(ProofError, match=f"cannot run {count} images at once: it takes 1 to 4"):
            machine.session(onnx_of("fp32")).resident(images[:count])


ADA = EngineOptions.up_to(4, compute_capabilities=("8.9",))


def test_tensorrt_rtx_makes_kernels_for_a_shape_before_they_are_captured(rtx_machine, onnx_of, images, wanted):
    session = rtx_machine.session(onnx_of("fp32"), ADA)
    (config,) = rtx_machine.trt.built
    assert "REQUIRE_USER_ALLOCATION" in {flag.name for flag in config._flags}
    for _ in range(3):
        np.testing.assert_allclose(session.run(images[:2]), wanted[:2], atol=1e-5)
    assert rtx_machine.cuda.replayed == 1


def test_tensorrt_rtx_compiles_a_batch_size_once_for_all_contexts_and_sessions(rtx_machine, onnx_of, images, wanted):
    plan = rtx_machine.build(onnx_of("fp32"), ADA)
    sessions = [EngineSession(rtx_machine.library, rtx_machine.gpu, plan, ADA) for _ in range(2)]
    for session in sessions:
        for _ in range(4):  # the common context, one of its own that is captured, replays
            gc.collect()  # settings of a context go unless they are kept
            np.testing.assert_allclose(session.run(images[:2]), wanted[:2], atol=1e-5)
    sessions[0].resident(images[:2])()
    assert rtx_machine.trt.compiled == [2]
    sessions[1].run(images[:3])
    assert rtx_machine.trt.compiled == [2, 3]


def test_the_next_process_finds_what_tensorrt_rtx_compiled(rtx_machine, fakes, onnx_of, images):
    plan = rtx_machine.build(onnx_of("fp32"), ADA)
    for sizes, compiled in (((2, 2, 4), [2, 4]), ((4, 2, 3), [3]), ((2, 3, 4), [])):
        trt = fakes.fake_tensorrt("11.4.0.106", rtx_machine.cuda, rtx=True)
        session = EngineSession(Library(trt, "tensorrt-rtx"), rtx_machine.gpu, plan, ADA)
        for size in sizes:
            session.run(images[:size])
        assert trt.compiled == compiled


def test_a_version_compatible_engine_that_does_not_load_names_the_lean_runtime(machine, onnx_of):
    options = EngineOptions.up_to(4, version_compatible=True)
    plan = machine.build(onnx_of(), options)[:-100]
    version = machine.trt.__version__
    with pytest.raises(
        RegnetDeployError, match=rf"Serialization.*may need the lean .*pip install tensorrt-lean-cu13-libs=={version}$"
    ):
        EngineSession(machine.library, machine.gpu, plan, options)


def test_a_driver_that_cannot_be_used_is_one_line(machine, onnx_of):
    plan = machine.build(onnx_of())
    machine.trt.starts = False
    with pytest.raises(RegnetDeployError, match="does not start: CUDA initialization failure with error: 35"):
        EngineSession(machine.library, machine.gpu, plan, EngineOptions.up_to(4))


def test_a_network_of_other_ends_is_refused(machine, onnx_of, monkeypatch):
    monkeypatch.setattr(machine.trt.ICudaEngine, "get_tensor_dtype", lambda self, name: machine.trt.DataType.HALF)
    with pytest.raises(BundleError, match="does not map one batch of images to logits, its tensors are"):
        machine.session(onnx_of())


def test_layers_are_read_from_the_engine_that_runs(machine, onnx_of, types_of):
    assert check_types(types_of("fp16"), machine.session(onnx_of("fp16")).layers()).unaccounted == ()


def test_a_session_that_goes_gives_its_memory_back(machine, onnx_of, images):
    session = machine.session(onnx_of())
    for _ in range(3):
        session.run(images[:2])
    del session
    gc.collect()
    assert machine.cuda.blocks == {}
