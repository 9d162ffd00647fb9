"""A variant made ready to answer: engines above all, on a machine with a GPU that is not there."""

from dataclasses import replace

import numpy as np
import pytest
from bundle_parts import latency, profile

from regnet_deploy.bundle import Manifest, open_bundle, update_bundle
from regnet_deploy.errors import BundleError, ProofError, RegnetDeployError, UsageError
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.serving.model_version import ServeOptions, load_version


@pytest.fixture
def build():
    """Build as ``serve --build-engine`` does."""
    from regnet_deploy.cli.serve import _build

    return _build


@pytest.fixture
def deserialised(computer, monkeypatch):
    """The plans that TensorRT was given to load."""
    seen, load = [], computer.trt.Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        computer.trt.Runtime, "deserialize_cuda_engine", lambda self, plan: seen.append(plan) or load(self, plan)
    )
    return seen


def test_an_onnx_variant_is_served_as_it_was_proved(exported_bundle):
    served = load_version(open_bundle(exported_bundle))
    assert (served.variant, served.session.device) == ("onnx-fp32", "cpu")
    assert served.prove().passed


def test_an_engine_that_fits_is_opened_and_answers(with_h100_engine, deserialised):
    bundle = open_bundle(with_h100_engine)
    served = load_version(bundle, ServeOptions(variant="trt-fp32"))
    assert served.session.device == "cuda:0 (NVIDIA H100 80GB HBM3)"
    assert served.interface.dtype == "float32"
    assert served.prove().passed
    assert deserialised == [bundle.read(bundle.parts["variants"]["trt-fp32"]["engines"][0]["file"])]


def test_an_engine_that_was_measured_fastest_is_taken_unasked(with_h100_engine, computer):
    rows = (latency("onnx-fp32", 1, 2.0), latency("trt-fp32", 1, 1.0))
    bundle = update_bundle(with_h100_engine, Manifest(profile=profile(*rows)))
    assert load_version(bundle).variant == "trt-fp32"
    assert load_version(bundle, ServeOptions(device="cpu")).variant == "onnx-fp32"
    computer.driver.gpu = None
    assert load_version(bundle).variant == "onnx-fp32"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda computer, a100: setattr(computer.driver, "gpu", a100),
            "it was built for NVIDIA H100.* has NVIDIA A100",
        ),
        (lambda computer, a100: setattr(computer.driver, "gpu", None), "the NVIDIA driver shows no GPU"),
        (
            lambda computer, a100: vars(computer.trt).update(__version__="11.3.0.1"),
            "it was built by tensorrt 11.4.0.106 and this machine has tensorrt 11.3.0.1",
        ),
        (lambda computer, a100: vars(computer.trt).update(__version__="12.0.0.1"), "newer than what this version"),
        (lambda computer, a100: vars(computer.trt).update(__version__="10.8.0.1"), "older than what this version"),
    ],
)
def test_one_that_does_not_fit_is_refused_with_the_reason(
    with_h100_engine, computer, fake_machine, deserialised, change, says
):
    change(computer, fake_machine.A100)
    with pytest.raises(UsageError, match=rf"variant trt-fp32 of .* cannot be served: .*{says}") as caught:
        load_version(open_bundle(with_h100_engine), ServeOptions(variant="trt-fp32"))
    assert "\n" not in str(caught.value)
    assert deserialised == []


def test_an_engine_without_proof_is_not_served(with_h100_engine):
    variants = open_bundle(with_h100_engine).parts["variants"]
    variants["trt-fp32"]["engines"][0]["proof"] = None
    bundle = update_bundle(with_h100_engine, {"variants": variants})
    with pytest.raises(UsageError, match="it is not proved to agree with the trained model"):
        load_version(bundle, ServeOptions(variant="trt-fp32"))


@pytest.mark.parametrize("at", [0, 50, -1])
def test_a_tampered_plan_is_refused_by_its_sha256_and_never_loaded(with_h100_engine, deserialised, at):
    bundle = open_bundle(with_h100_engine)
    path = bundle.stored_path(bundle.parts["variants"]["trt-fp32"]["engines"][0]["file"])
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="is damaged: its sha256 is not"):
        load_version(bundle, ServeOptions(variant="trt-fp32"))
    assert deserialised == []


def test_a_plan_that_was_cut_short_is_refused_and_never_loaded(with_h100_engine, deserialised):
    bundle = open_bundle(with_h100_engine)
    path = bundle.stored_path(bundle.parts["variants"]["trt-fp32"]["engines"][0]["file"])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BundleError, match="is damaged"):
        load_version(bundle, ServeOptions(variant="trt-fp32"))
    assert deserialised == []


def test_an_engine_that_answers_wrongly_here_is_not_ready(with_h100_engine, computer, fake_machine, monkeypatch):
    fake_machine.shifted(computer, monkeypatch, lambda logits: logits + np.float32(0.5))
    with pytest.raises(ProofError, match=r"variant trt-fp32 of \S+ does not agree with its golden set"):
        load_version(open_bundle(with_h100_engine), ServeOptions(variant="trt-fp32")).prove()


class TestBuild:
    """Where it is allowed, an engine is built in memory."""

    def test_what_the_bundle_has_none_of_is_built_and_answers_and_the_bundle_is_left(
        self, with_h100_engine, computer, fake_machine, build, snapshot
    ):
        computer.driver.gpu = fake_machine.A100
        before = snapshot(with_h100_engine)
        bundle = open_bundle(with_h100_engine)
        served = load_version(bundle, ServeOptions(variant="trt-fp32", build=build))
        assert served.session.device == "cuda:0 (NVIDIA A100-SXM4-80GB)"
        assert served.prove().passed
        images = load_golden(bundle).images
        assert served.session.run(np.zeros((len(images), 3, 24, 24), np.float32)).shape == (16, 6)
        assert snapshot(with_h100_engine) == before

    def test_a_variant_without_any_engine_is_built(self, without_engine, computer, build):
        assert load_version(open_bundle(without_engine), ServeOptions(variant="trt-fp32", build=build)).prove().passed

    def test_what_is_there_is_not_built_again(self, with_h100_engine, computer):
        built = len(computer.trt.built)
        load_version(
            open_bundle(with_h100_engine),
            ServeOptions(variant="trt-fp32", build=lambda *given: pytest.fail("was built")),
        )
        assert len(computer.trt.built) == built

    def test_an_onnx_variant_needs_none(self, exported_bundle, computer):
        served = load_version(
            open_bundle(exported_bundle),
            ServeOptions(variant="onnx-fp32", build=lambda *given: pytest.fail("was built")),
        )
        assert served.variant == "onnx-fp32"

    @pytest.mark.parametrize(("device", "says"), [("cpu", "the CPU was requested"), ("auto", "it has no engine")])
    def test_without_a_gpu_or_for_the_cpu_none_is_built(self, without_engine, computer, build, device, says):
        if device == "auto":
            computer.driver.gpu = None
        with pytest.raises(UsageError, match=says):
            load_version(open_bundle(without_engine), ServeOptions(variant="trt-fp32", device=device, build=build))
        assert computer.trt.built == []

    def test_one_that_answers_wrongly_is_not_ready(self, without_engine, computer, build, fake_machine, monkeypatch):
        fake_machine.shifted(computer, monkeypatch, lambda logits: logits + np.float32(0.5))
        served = load_version(open_bundle(without_engine), ServeOptions(variant="trt-fp32", build=build))
        with pytest.raises(ProofError, match=r"variant trt-fp32 of \S+ does not agree with its golden set"):
            served.prove()

    def test_one_in_another_type_is_refused(self, without_engine, computer, build):
        computer.trt.convolutions = lambda name, kind: "Half"
        with pytest.raises(ProofError, match="fp32 required, fp16 built"):
            load_version(open_bundle(without_engine), ServeOptions(variant="trt-fp32", build=build))

    def test_too_little_memory_of_the_gpu_is_one_line(self, without_engine, computer, build):
        computer.driver.gpu = replace(computer.gpu, memory_bytes=2**30)
        with pytest.raises(UsageError, match=r"has 0 MiB of its 1024 MiB free") as caught:
            load_version(open_bundle(without_engine), ServeOptions(variant="trt-fp32", build=build))
        assert "\n" not in str(caught.value)

    def test_a_build_that_fails_is_one_line_with_the_reason(self, without_engine, computer, build):
        computer.trt.error = "Could not find any implementation"
        with pytest.raises(RegnetDeployError, match=r"does not build the network: .*Could not find any") as caught:
            load_version(open_bundle(without_engine), ServeOptions(variant="trt-fp32", build=build))
        assert "\n" not in str(caught.value)

    def test_a_damaged_source_is_refused_before_anything_is_built(self, without_engine, computer, build):
        bundle = open_bundle(without_engine)
        path = bundle.stored_path("onnx-fp32.onnx")
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BundleError, match="is damaged"):
            load_version(bundle, ServeOptions(variant="trt-fp32", build=build))
        assert computer.trt.built == []
