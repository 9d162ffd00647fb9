import gc
from types import SimpleNamespace

import pytest

from regnet_deploy.engines.builder_log import BuilderLog, BuildMonitor, build_error, plain_text, record_errors
from regnet_deploy.engines.library import Library
from regnet_deploy.progress import NoProgress

LIBRARY = Library(SimpleNamespace(__version__="11.4.0.106"), "tensorrt")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] "
            "Cannot compile operation 'head.fc' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at "
            "/_src/optimizer/myelin/codeGenerator.cpp:2012)",
            "Myelin Cannot compile operation 'head.fc' for Turing (SM75): FP32 GEMM is not supported",
        ),
        ("Error Code 2: OutOfMemory (Requested size was 8 bytes.)", "OutOfMemory (Requested size was 8 bytes.)"),
        ("two\nlines  here", "two lines here"),
        ("", ""),
    ],
)
def test_the_places_in_tensorrts_sources_are_left_out(text, line):
    assert plain_text(text) == line


def test_reasons_are_said_once_the_first_three_and_how_many_more():
    error = build_error(LIBRARY, "does not build", ["a", "b", "a", "", "c", "d", "e"])
    assert str(error) == "tensorrt 11.4.0.106 does not build: a; b; c (and 2 more)"


def test_logger_and_recorder_keep_errors_once_and_the_rest_not(fakes):
    trt = fakes.fake_tensorrt("11.4.0.106")
    log = BuilderLog(trt)
    severity = trt.ILogger.Severity
    log.logger.log(severity.WARNING, "slow")
    log.logger.log(severity.ERROR, "Error Code 4: broken")
    assert log.recorder.report_error(trt.ErrorCodeTRT.INVALID_CONFIG, "Error Code 4: broken") is False
    log.recorder.report_error(trt.ErrorCodeTRT.INVALID_CONFIG, "another")
    log.logger.log(severity.VERBOSE, "Layers:\nName: a")
    assert log.errors == ["broken", "another"]
    assert log.layers == "Layers:\nName: a"
    assert (log.recorder.num_errors(), log.recorder.get_error_desc(1)) == (2, "another")
    assert log.recorder.get_error_code(0) == trt.ErrorCodeTRT.INVALID_CONFIG
    assert log.recorder.has_overflowed() is False
    log.recorder.clear()
    assert log.recorder.num_errors() == 0
    assert log.errors == ["broken", "another"]


def test_a_library_has_one_logger_for_all_that_listen_and_it_outlives_them(fakes):
    trt = fakes.fake_tensorrt("11.4.0.106")
    first, second = BuilderLog(trt), BuilderLog(trt)
    logger = first.logger
    assert second.logger is logger
    assert BuilderLog(fakes.fake_tensorrt("11.4.0.106")).logger is not logger
    del first
    gc.collect()
    logger.log(trt.ILogger.Severity.ERROR, "broken")
    assert second.errors == ["broken"]
    second.clear()
    assert second.errors == []
    assert BuilderLog(trt).errors == []


def test_what_runs_engines_tells_its_errors_to_the_recorder_but_of_tensorrt_rtx(fakes):
    log = BuilderLog(fakes.fake_tensorrt("11.4.0.106"))
    engine, other = SimpleNamespace(), SimpleNamespace()
    log.attach_to("tensorrt", engine)
    log.attach_to("tensorrt-rtx", other)
    assert engine.error_recorder is log.recorder
    assert not hasattr(other, "error_recorder")


def test_a_builder_has_the_recorder_for_the_body_alone(fakes):
    log, builder = BuilderLog(fakes.fake_tensorrt("11.4.0.106")), SimpleNamespace(error_recorder=None)

    def fail():
        with record_errors(builder, log):
            assert builder.error_recorder is log.recorder
            raise ValueError("in the body")

    with pytest.raises(ValueError, match="in the body"):
        fail()
    assert builder.error_recorder is None


def test_a_monitor_goes_on_until_it_is_cancelled_or_its_progress_raises(fakes, recorded_progress):
    trt = fakes.fake_tensorrt("11.4.0.106")
    recorded_progress.step("building")
    monitor = BuildMonitor(trt, recorded_progress)
    monitor.hook.phase_start("Tactics", None, 7)
    assert monitor.hook.step_complete("Tactics", 0) is True
    monitor.hook.phase_finish("Tactics")
    monitor.cancelled = True
    assert monitor.hook.step_complete("Tactics", 1) is False
    assert recorded_progress.updates == [("building", 0, None, "Tactics (7)")]

    class Failing(NoProgress):
        def update(self, completed, total=None, note=""):
            raise ZeroDivisionError

    failing = BuildMonitor(trt, Failing())
    failing.hook.phase_start("Tactics", None, 7)
    assert isinstance(failing.raised, ZeroDivisionError)
    assert failing.hook.step_complete("Tactics", 0) is False
