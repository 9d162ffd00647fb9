import gc
from types import SimpleNamespace

import pytest

from regnet_deploy.engines.builder_log import BuilderLog, BuildProgress, failure, plain_text, record_log
from regnet_deploy.engines.library import Library

LIBRARY = Library(SimpleNamespace(__version__="11.4.0.106"), "tensorrt")


@pytest.mark.parametrize(
    ("said", "line"),
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
def test_the_places_in_tensorrts_sources_are_left_out(said, line):
    assert plain_text(said) == line


def test_reasons_are_said_once_the_first_three_and_how_many_more():
    error = failure(LIBRARY, "does not build", ["a", "b", "a", "", "c", "d", "e"])
    assert str(error) == "tensorrt 11.4.0.106 does not build: a; b; c (and 2 more)"


def test_logger_and_recorder_keep_errors_once_and_the_rest_not(fakes):
    trt = fakes.fake_tensorrt("11.4.0.106")
    heard = BuilderLog(trt)
    severity = trt.ILogger.Severity
    heard.logger.log(severity.WARNING, "slow")
    heard.logger.log(severity.ERROR, "Error Code 4: broken")
    assert heard.recorder.report_error(trt.ErrorCodeTRT.INVALID_CONFIG, "Error Code 4: broken") is False
    heard.recorder.report_error(trt.ErrorCodeTRT.INVALID_CONFIG, "another")
    heard.logger.log(severity.VERBOSE, "Layers:\nName: a")
    assert heard.errors == ["broken", "another"]
    assert heard.layers == "Layers:\nName: a"
    assert (heard.recorder.num_errors(), heard.recorder.get_error_desc(1)) == (2, "another")
    assert heard.recorder.get_error_code(0) == trt.ErrorCodeTRT.INVALID_CONFIG
    assert heard.recorder.has_overflowed() is False
    heard.recorder.clear()
    assert heard.recorder.num_errors() == 0
    assert heard.errors == ["broken", "another"]


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
    second.forget()
    assert second.errors == []
    assert BuilderLog(trt).errors == []


def test_what_runs_engines_tells_its_errors_to_the_recorder_but_of_tensorrt_rtx(fakes):
    heard = BuilderLog(fakes.fake_tensorrt("11.4.0.106"))
    engine, other = SimpleNamespace(), SimpleNamespace()
    heard.listen_to("tensorrt", engine)
    heard.listen_to("tensorrt-rtx", other)
    assert engine.error_recorder is heard.recorder
    assert not hasattr(other, "error_recorder")


def test_a_builder_has_the_recorder_for_the_body_alone(fakes):
    heard, builder = BuilderLog(fakes.fake_tensorrt("11.4.0.106")), SimpleNamespace(error_recorder=None)

    def fail():
        with record_log(builder, heard):
            assert builder.error_recorder is heard.recorder
            raise ValueError("in the body")

    with pytest.raises(ValueError, match="in the body"):
        fail()
    assert builder.error_recorder is None


def test_a_monitor_goes_on_until_it_is_cancelled_or_its_receiver_raises(fakes):
    trt, told = fakes.fake_tensorrt("11.4.0.106"), []
    monitor = BuildProgress(trt, lambda steps, phase: told.append((steps, phase)))
    monitor.hook.phase_start("Tactics", None, 7)
    assert monitor.hook.step_complete("Tactics", 0) is True
    monitor.hook.phase_finish("Tactics")
    monitor.cancelled = True
    assert monitor.hook.step_complete("Tactics", 1) is False
    assert told == [(7, "Tactics")]

    failing = BuildProgress(trt, lambda steps, phase: 1 / 0)
    failing.hook.phase_start("Tactics", None, 7)
    assert isinstance(failing.raised, ZeroDivisionError)
    assert failing.hook.step_complete("Tactics", 0) is False
