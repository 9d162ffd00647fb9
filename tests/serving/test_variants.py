from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.serving.gates import GATES, Gate
from regnet_deploy.serving.variants import choose_variant


def measured(bundle: Path, *rows: tuple[str | None, int, float]) -> Bundle:
    latency = [{"variant": name, "batch": batch, "p50_ms": p50_ms} for name, batch, p50_ms in rows]
    return update_bundle(bundle, {"profile": {"latency": latency}})


def changed(bundle: Path, name: str, **fields: Any) -> Bundle:
    variants = open_bundle(bundle).part("variants")
    variants[name].update(fields)
    return update_bundle(bundle, {"variants": variants})


def test_without_measurements_it_is_the_first(exported_bundle: Path):
    assert choose_variant(open_bundle(exported_bundle)) == "onnx-fp32"


def test_with_measurements_it_is_the_fastest_for_one_image(exported_bundle: Path):
    bundle = measured(
        exported_bundle, ("onnx-fp32", 1, 3.0), ("onnx-fp32-uint8", 1, 2.0), (None, 1, 1.0), ("onnx-fp32", 8, 0.5)
    )
    assert choose_variant(bundle) == "onnx-fp32-uint8"
    assert choose_variant(bundle, "onnx-fp32") == "onnx-fp32"


def test_one_that_was_not_measured_comes_last(exported_bundle: Path):
    assert choose_variant(measured(exported_bundle, ("onnx-fp32-uint8", 4, 9.0))) == "onnx-fp32-uint8"


@pytest.mark.parametrize("proof", [None, {"passed": False}])
def test_an_unproved_one_is_never_chosen(exported_bundle: Path, proof: dict[str, bool] | None):
    measured(exported_bundle, ("onnx-fp32", 1, 1.0), ("onnx-fp32-uint8", 1, 2.0))
    bundle = changed(exported_bundle, "onnx-fp32", proof=proof)
    assert choose_variant(bundle) == "onnx-fp32-uint8"
    with pytest.raises(UsageError, match="not proved"):
        choose_variant(bundle, "onnx-fp32")


def test_where_none_will_do_each_reason_is_given(exported_bundle: Path):
    changed(exported_bundle, "onnx-fp32", proof=None)
    bundle = changed(exported_bundle, "onnx-fp32-uint8", runtime="tensorrt")
    with pytest.raises(UsageError, match=r"onnx-fp32: it is not proved.*onnx-fp32-uint8: it is a tensorrt engine"):
        choose_variant(bundle)


@pytest.mark.parametrize("variants", [None, {}])
def test_before_export_the_command_is_named(exported_bundle: Path, variants: dict[str, Any] | None):
    bundle = update_bundle(exported_bundle, {} if variants is None else {"variants": {}}, drop=("variants",))
    with pytest.raises(MissingPart, match="export --onnx"):
        choose_variant(bundle)


@pytest.mark.parametrize(
    "figures",
    [
        {"gate": replace(GATES["fp32"], atol=0.5).to_json()},
        {"gate": replace(GATES["fp32"], rtol=0.1).to_json()},
        {"gate": replace(GATES["fp32"], cosine=0.5).to_json()},
        {"gate": replace(GATES["fp32"], top1=0.9).to_json()},
        {"gate": Gate().to_json()},
        {"atol": 1e-4, "rtol": 1e-3},  # of a version before gates
    ],
)
def test_one_that_was_proved_loosely_is_only_taken_when_it_is_named(exported_bundle: Path, figures: dict[str, Any]):
    proof = {"passed": True, **figures}
    bundle = changed(exported_bundle, "onnx-fp32", proof=proof)
    assert choose_variant(bundle) == "onnx-fp32-uint8"
    assert choose_variant(bundle, "onnx-fp32") == "onnx-fp32"
    bundle = changed(exported_bundle, "onnx-fp32-uint8", proof=proof)
    with pytest.raises(UsageError, match=r"looser gate than fp32 has, name it with --variant onnx-fp32;"):
        choose_variant(bundle)


def test_what_engines_are_built_from_is_only_taken_when_it_is_named(exported_bundle: Path):
    bundle = changed(exported_bundle, "onnx-fp32", exact=True)
    assert choose_variant(bundle) == "onnx-fp32-uint8"
    assert choose_variant(bundle, "onnx-fp32") == "onnx-fp32"
    bundle = changed(exported_bundle, "onnx-fp32-uint8", exact=True)
    with pytest.raises(UsageError, match="TensorRT engines are built from it"):
        choose_variant(bundle)


def test_an_engine_is_not_blamed_for_the_proofs_that_its_engines_have(exported_bundle: Path):
    variants = open_bundle(exported_bundle).part("variants")
    engine = {"runtime": "tensorrt", "precision": "fp32", "input": "float32", "source": "onnx-fp32", "engines": []}
    bundle = update_bundle(exported_bundle, {"variants": {"trt-fp32": engine, **variants}})
    assert choose_variant(bundle) == "onnx-fp32"
    with pytest.raises(UsageError, match="cannot be served: it is a tensorrt engine"):
        choose_variant(bundle, "trt-fp32")
