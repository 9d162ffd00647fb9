import json
from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.errors import BundleError, MissingPart
from regnet_deploy.exporting.model_source import load_model_source
from regnet_deploy.exporting.onnx_graph import activation_names, build_onnx
from regnet_deploy.exporting.precision import PRECISIONS


def test_it_is_the_network_and_the_weights_of_the_bundle(trained, source, network):
    bundle = open_bundle(trained)
    assert replace(source.network) == network
    assert source.preprocessing.to_json() == bundle.parts["preprocessing"]
    assert not source.model.training
    assert set(source.weights) == set(source.model.state_dict())
    np.testing.assert_array_equal(source.weights["head.fc.bias"], source.model.head.fc.bias.detach().numpy())


def test_files_are_those_of_the_graph_and_tell_of_the_bundle(trained, source):
    bundle = open_bundle(trained)
    metadata = {
        name: json.dumps(bundle.parts[name], sort_keys=True) for name in ("architecture", "preprocessing", "labels")
    }
    assert source.metadata == metadata
    arguments = (source.network, source.weights, source.preprocessing)
    for name, pixels in (("fp32", False), ("fp16", True)):
        precision = PRECISIONS[name]
        wanted = build_onnx(*arguments, precision, None, pixels=pixels, reduce_range=False, metadata=metadata)
        assert source.onnx(precision, pixels=pixels) == wanted
    assert source.activation_names() == activation_names(source.network, source.weights)


def test_every_convolution_has_a_type(source):
    types = source.convolution_types(PRECISIONS["int8-1x1"])
    assert set(types.values()) == {"int8", "fp16"}
    assert types["stem.conv"] == "fp16"
    assert set(source.convolution_types(PRECISIONS["fp32"]).values()) == {"fp32"}
    assert set(source.convolution_types(PRECISIONS["fp32"])) == set(types)


def test_before_training_the_weights_are_seeded_and_there_are_no_labels_to_tell_of(untrained):
    first, second = load_model_source(open_bundle(untrained)), load_model_source(open_bundle(untrained))
    assert set(first.metadata) == {"architecture", "preprocessing"}
    assert all(np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_what_is_missing_or_of_another_network_is_one_line(trained):
    architecture = open_bundle(trained).parts["architecture"]
    update_bundle(trained, {"architecture": {**architecture, "classes": 7}})
    with pytest.raises(BundleError) as caught:
        load_model_source(open_bundle(trained))
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingPart, match="preprocessing"):
        load_model_source(update_bundle(trained, {"architecture": architecture}, drop=("preprocessing",)))
