"""Weights out of a module, into a bundle and back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bundle_parts import onnx_variant, profile, training

from regnet_deploy.bundle import Bundle, Manifest, create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.errors import BundleError, MissingPart, UsageError
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import (
    FILE,
    SAMPLES,
    UNTRAINED_SEED,
    WeightsUpdate,
    inference_model,
    load_model,
    replace_weights,
    weights_from_bytes,
    weights_to_bytes,
)
from regnet_deploy.space.network import Network

NETWORK = Network((1,), (16,), (8,), (1.0,), se_ratio=0.25, stem_width=8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return create_bundle(
        tmp_path / "bundle", {"architecture": Architecture.of(NETWORK, name="tiny", classes=3, resolution=32)}
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return sorted(one) == sorted(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_bytes_bring_the_weights_back() -> None:
    state = AnyNet(NETWORK, 3, seed=5).state_dict()
    assert same(weights_from_bytes(weights_to_bytes(state)), state)


def test_equal_weights_are_equal_bytes_in_any_order_and_layout() -> None:
    state = AnyNet(NETWORK, 3, seed=5).state_dict()
    turned = AnyNet(NETWORK, 3, seed=5).to(memory_format=torch.channels_last).state_dict()
    backwards = dict(reversed(list(turned.items())))
    assert weights_to_bytes(backwards) == weights_to_bytes(state)


def test_another_weight_is_another_file() -> None:
    state = AnyNet(NETWORK, 3, seed=5).state_dict()
    before = weights_to_bytes(state)
    state["head.fc.bias"][0] += 1
    assert weights_to_bytes(state) != before


def test_before_training_the_model_has_the_seeds_weights(bundle: Bundle) -> None:
    assert not bundle.is_trained
    model = load_model(bundle)
    assert not model.training
    assert same(model.state_dict(), AnyNet(NETWORK, 3, seed=UNTRAINED_SEED).state_dict())


def test_a_bundle_from_before_there_were_kinds_of_blocks_still_opens(tmp_path: Path) -> None:
    architecture = Architecture.of(NETWORK, name="tiny", classes=3, resolution=32).to_json()
    old = {name: value for name, value in architecture.items() if name != "block"}
    bundle = create_bundle(tmp_path / "old", {"architecture": old})
    assert same(load_model(bundle).state_dict(), AnyNet(NETWORK, 3, seed=UNTRAINED_SEED).state_dict())


def test_after_training_the_model_has_the_bundles_weights(bundle: Bundle) -> None:
    state = AnyNet(NETWORK, 3, seed=7).state_dict()
    trained = update_bundle(bundle.path, {}, {FILE: weights_to_bytes(state)})
    assert trained.is_trained
    assert same(load_model(trained).state_dict(), state)


def test_weights_of_another_network_are_refused_in_one_line(bundle: Bundle) -> None:
    other = Network((2,), (16,), (8,), (1.0,), stem_width=8)
    wrong = update_bundle(bundle.path, {}, {FILE: weights_to_bytes(AnyNet(other, 3, seed=0).state_dict())})
    with pytest.raises(
        BundleError, match=r"of another network: run `regnet-deploy train --data DIR \S+` again"
    ) as caught:
        load_model(wrong)
    assert "\n" not in str(caught.value)


def test_a_bundle_without_architecture_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingPart, match="select"):
        load_model(create_bundle(tmp_path / "empty", {}))


def test_inference_keeps_nothing_for_a_gradient(bundle: Bundle) -> None:
    logits = inference_model(load_model(bundle), torch.zeros(2, 3, 16, 16))
    assert logits.shape == (2, 3)
    assert logits.is_inference()


def imported(bundle: Bundle, seed: int = 7) -> WeightsUpdate:
    """Weights of two classes that this program did not train."""
    architecture = bundle.architecture.replace(classes=2)
    state = AnyNet(NETWORK, 2, seed=seed).state_dict()
    return WeightsUpdate(state, architecture, default_preprocessing(32), ("cat", "dog"))


def test_new_weights_need_no_training_run(bundle: Bundle) -> None:
    update = imported(bundle)
    replaced = replace_weights(bundle, update)
    assert replaced == open_bundle(bundle.path)
    assert same(load_model(replaced).state_dict(), dict(update.state))
    assert (replaced.architecture.classes, replaced.labels) == (2, ("cat", "dog"))
    assert replaced.preprocessing == default_preprocessing(32)
    assert replaced.manifest.training is None


def test_what_was_made_with_the_old_weights_is_removed(bundle: Bundle) -> None:
    old = Manifest(
        labels=("a", "b", "c"),
        training=training(),
        profile=profile(),
        variants={"onnx-fp32": onnx_variant()},
        environment={"select": {"numpy": "2"}, "train": {"torch": "2"}, "export": {"onnx": "1"}},
    )
    files = {
        FILE: b"old",
        SAMPLES: b"s",
        "golden.safetensors": b"g",
        "fp32.onnx": b"x",
        "a.plan": b"y",
        "notes.txt": b"n",
    }
    before = update_bundle(bundle.path, old, files)
    replaced = replace_weights(before, imported(before))
    assert set(replaced.parts) == {"architecture", "preprocessing", "labels", "environment"}
    assert set(replaced.files) == {FILE, "notes.txt"}
    assert set(replaced.manifest.environment) == {"select"}


def test_weights_are_not_replaced_in_a_bundle_that_changed_meanwhile(bundle: Bundle) -> None:
    update = imported(bundle)
    changed = update_bundle(bundle.path, {}, {FILE: weights_to_bytes(AnyNet(NETWORK, 3, seed=1).state_dict())})
    with pytest.raises(BundleError, match="changed by another command meanwhile"):
        replace_weights(bundle, update)
    assert open_bundle(bundle.path) == changed


def test_without_labels_those_of_the_old_weights_are_removed(bundle: Bundle) -> None:
    before = update_bundle(bundle.path, Manifest(labels=("a", "b", "c")))
    assert "labels" not in replace_weights(before, replace(imported(before), labels=())).parts


def test_files_that_an_export_wrote_meanwhile_are_removed_too(bundle: Bundle) -> None:
    update_bundle(bundle.path, Manifest(variants={"onnx-fp32": onnx_variant()}), {"fp32.onnx": b"x"})
    replaced = replace_weights(bundle, imported(bundle))
    assert set(replaced.files) == {FILE}


def test_labels_are_one_for_each_class(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="3 labels for 2 classes"):
        replace(imported(bundle), labels=("a", "b", "c"))
