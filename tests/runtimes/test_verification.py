import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.errors import MissingExtra
from regnet_deploy.runtimes.verification import verify


def checks(path):
    def no_weights(bundle):
        raise MissingExtra("this needs torch")

    return {check.subject: check for check in verify(open_bundle(path), no_weights)}


def test_an_engine_that_fits_is_run(with_h100_engine):
    check = checks(with_h100_engine)["trt-fp32"]
    assert (check.outcome, check.detail) == (
        "ok",
        "golden set by tensorrt 11.4.0.106 on cuda:0 (NVIDIA H100 80GB HBM3)",
    )
    assert check.agreement.images == 16


def test_an_engine_that_answers_wrongly_disagrees(with_h100_engine, computer, fake_machine, monkeypatch):
    fake_machine.shifted(computer, monkeypatch, lambda logits: logits + np.float32(0.5))
    found = checks(with_h100_engine)
    assert found["trt-fp32"].outcome == "disagrees"
    assert found["onnx-fp32"].outcome == "ok"
    assert "|error| 0.5 of a logit" in found["trt-fp32"].to_json()["failures"][0]


def test_an_engine_of_another_machine_is_not_run_and_why_is_said(with_h100_engine, computer, fake_machine):
    computer.driver.gpu = fake_machine.A100
    check = checks(with_h100_engine)["trt-fp32"]
    assert check.outcome == "not run"
    assert "it was built for NVIDIA H100" in check.detail
    assert "this machine has NVIDIA A100" in check.detail


def test_a_tampered_plan_is_damaged_and_never_loaded(with_h100_engine, computer, monkeypatch):
    monkeypatch.setattr(computer.trt.Runtime, "deserialize_cuda_engine", lambda *given: pytest.fail("was loaded"))
    bundle = open_bundle(with_h100_engine)
    path = bundle.stored_path(bundle.parts["variants"]["trt-fp32"]["engines"][0]["file"])
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    found = checks(with_h100_engine)
    assert found["trt-fp32"].outcome == "damaged"
    assert "is damaged" in found["trt-fp32"].detail


def test_a_plan_that_the_library_does_not_load_is_damaged(with_h100_engine, computer, monkeypatch):
    monkeypatch.setattr(computer.trt.Runtime, "deserialize_cuda_engine", lambda self, plan: None)
    check = checks(with_h100_engine)["trt-fp32"]
    assert (check.outcome, "does not load the engine" in check.detail) == ("damaged", True)


def test_an_engine_of_a_file_that_was_replaced_is_not_run(with_h100_engine):
    bundle = open_bundle(with_h100_engine)
    update_bundle(with_h100_engine, {}, {"onnx-fp32.onnx": bundle.read("onnx-fp32-uint8.onnx")})
    check = checks(with_h100_engine)["trt-fp32"]
    assert (check.outcome, "was built from another onnx-fp32" in check.detail) == ("not run", True)
