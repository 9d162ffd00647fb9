"""Weights of other libraries: recognized, converted, or refused with the name of what they are."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_weights import X, Y, as_library, weights_of
from safetensors.torch import save

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.importing.foreign_weights import read_foreign_weights
from regnet_deploy.importing.layouts import OWN, SOURCES
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import weights_to_bytes
from regnet_deploy.space.network import Network

Save = Callable[..., Path]


@pytest.mark.parametrize(
    ("source", "network"),
    # mmpretrain has no squeeze-and-excitation in its RegNets; weights of this program have the names of pycls
    [
        (source, network)
        for source in SOURCES
        for network in (X, Y)
        if source != OWN and (network == X or source != "mmpretrain")
    ],
)
def test_the_same_network_and_weights_come_back(saved: Save, source: str, network: Network) -> None:
    state = weights_of(network)
    read = read_foreign_weights(saved(as_library(source, state, network)))
    assert (read.source, read.network, read.classes) == (source, network, 5)
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[name], tensor) for name, tensor in state.items())


def test_the_order_of_channels_is_the_library_s_the_configuration_s_or_the_given_one(saved: Save) -> None:
    state = weights_of(X)
    flipped = state["stem.conv.weight"].flip(1)

    def stem(content: object, **options: str) -> torch.Tensor:
        return read_foreign_weights(saved(content), **options).state["stem.conv.weight"]  # type: ignore[arg-type]

    assert torch.equal(stem(state), flipped)
    assert "BGR is assumed" in read_foreign_weights(saved(state)).assumptions[0]
    assert torch.equal(stem(state, channels="rgb"), state["stem.conv.weight"])
    for mode, wanted in (("opencv", flipped), ("ffcv", state["stem.conv.weight"])):
        content = {"model_state": state, "cfg": f"DATA_LOADER:\n  MODE: {mode}\n"}
        assert torch.equal(stem(content), wanted)
        assert read_foreign_weights(saved(content)).assumptions == ()


def test_weights_of_a_bundle_are_known_by_their_metadata_or_the_digest_in_their_name(tmp_path: Path) -> None:
    state = weights_of(X)
    (tmp_path / "copy.safetensors").write_bytes(weights_to_bytes(state))
    earlier = save(state)  # earlier versions wrote no metadata
    digest = hashlib.sha256(earlier).hexdigest()[:12]
    files = [tmp_path / "copy.safetensors", tmp_path / f"weights-{digest}.safetensors"]
    files[1].write_bytes(earlier)
    for file in files:
        read = read_foreign_weights(file)
        assert (read.source, read.assumptions) == ("regnet-deploy", ())
        assert torch.equal(read.state["stem.conv.weight"], state["stem.conv.weight"])
    (tmp_path / "renamed.safetensors").write_bytes(earlier)
    read = read_foreign_weights(tmp_path / "renamed.safetensors")
    assert read.source == "pycls"
    assert read.assumptions[0].endswith("and --from regnet-deploy for those of a bundle")
    read = read_foreign_weights(tmp_path / "renamed.safetensors", source="regnet-deploy")
    assert torch.equal(read.state["stem.conv.weight"], state["stem.conv.weight"])


def test_the_head_of_swag_is_that_of_classy(saved: Save) -> None:
    state = {name.replace("heads.fc", "head.fc"): t for name, t in as_library("classy", weights_of(Y), Y).items()}
    assert "head.fc.weight" in state
    read = read_foreign_weights(saved(state))
    assert (read.source, read.classes) == ("classy", 5)


def test_biases_of_convolutions_give_the_same_answers_in_the_batch_norms_behind_them(tmp_path: Path) -> None:
    """As the convolutions of PaddleClas have; its files are pickles of arrays, in which matrices are (in, out)."""
    state = weights_of(Y)
    model = AnyNet(Y, 5, seed=0)
    model.load_state_dict(state)
    generator = torch.Generator().manual_seed(2)
    biases = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and ".se." not in name:
            bias = biases[f"{name}.bias"] = torch.randn(module.out_channels, generator=generator)
            module.register_forward_hook(lambda *call, bias=bias: call[-1] + bias[:, None, None])
    assert len(biases) == 12  # the stem, three in each of three blocks, two shortcuts
    arrays = {name: t.numpy() for name, t in as_library("paddleclas", {**state, **biases}, Y).items()}
    assert "s1_b1.conv0._conv.bias" in arrays
    assert arrays["s1_b1.conv0._batch_norm._mean"].shape == (16,)
    assert arrays["out.weight"].shape == (32, 5)
    file = tmp_path / "regnet.pdparams"
    file.write_bytes(pickle.dumps({**arrays, "StructuredToParameterName@@": {"out.weight": "fc_0.w_0"}}, 2))
    read = read_foreign_weights(file)
    assert (read.source, read.network, read.file.container) == ("paddleclas", Y, "numpy pickle")
    assert read.file.remarks == ("12 biases of convolutions are taken into the batch norms behind them",)
    folded = AnyNet(Y, 5, seed=0)
    folded.load_state_dict(dict(read.state))
    images = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(folded.eval()(images), model.eval()(images), rtol=1e-5, atol=1e-5)


def test_a_library_without_counters_gets_them(saved: Save) -> None:
    state = {name: tensor for name, tensor in weights_of(X).items() if "num_batches" not in name}
    read = read_foreign_weights(saved(as_library("timm", state, X)))
    assert read.state.keys() == weights_of(X).keys()


def test_a_counter_of_another_shape_or_type_is_replaced(saved: Save) -> None:
    name = "stem.bn.num_batches_tracked"
    for value in (torch.zeros(3), torch.tensor(2.0)):
        assert torch.equal(read_foreign_weights(saved(weights_of(X) | {name: value})).state[name], torch.tensor(0))


def test_a_whole_model_of_classy_has_a_wrapper_around_the_block_of_its_head(saved: Save) -> None:
    state = as_library("classy", weights_of(Y), Y)
    wrapped = {
        name.replace("block2-1.", "block2-1._module.").replace("heads.fc", "_heads.block2-1.default_head.fc"): tensor
        for name, tensor in state.items()
    }
    assert sum("_module" in name for name in wrapped) > 10
    read = read_foreign_weights(saved(wrapped))
    assert (read.source, read.network) == ("classy", Y)


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (("s2.b1.", "s9.b1."), "the stages are numbered 1, 3, 9, not from 1 without gaps"),
        (("s3.b2.", "s3.b4."), "the blocks of stage 3 are numbered 1, 4, not from 1 without gaps"),
        (("s1.b1.f.b.weight", "s1.b1.f.b.kernel"), "a RegNet has a tensor s1.b1.f.b.weight"),
        (("head.fc.", "head.none."), "tensors are of no RegNet: head.none.weight, head.none.bias"),
    ],
)
def test_indices_with_gaps_and_names_of_no_regnet_are_named(saved: Save, rename: tuple[str, str], said: str) -> None:
    state = {name.replace(*rename): tensor for name, tensor in weights_of(X).items()}
    with pytest.raises(DataError, match=said) as caught:
        read_foreign_weights(saved(state))
    assert "\n" not in str(caught.value)


def test_shapes_that_do_not_fit_are_named_five_at_most(saved: Save) -> None:
    state = {
        name: torch.cat([tensor, tensor]) if ".a_bn." in name and tensor.ndim else tensor
        for name, tensor in weights_of(X).items()
    }
    said = r"16 tensors have other shapes: s1\.b1\.f\.a_bn\.weight \(16\) in place of \(8\)"
    with pytest.raises(DataError, match=said) as caught:
        read_foreign_weights(saved(state))
    assert str(caught.value).count("in place of") == 5
    assert str(caught.value).endswith("and 11 more")


def test_one_tensor_is_not_many(saved: Save) -> None:
    state = weights_of(X)
    without = {name: tensor for name, tensor in state.items() if name != "s1.b1.f.a_bn.bias"}
    with pytest.raises(DataError, match=r"fit no RegNet: 1 tensor is missing: s1\.b1\.f\.a_bn\.bias"):
        read_foreign_weights(saved(without))
    with pytest.raises(DataError, match=r"but 1 of \d+ tensors is of no RegNet: mine"):
        read_foreign_weights(saved(state | {"mine": torch.zeros(3)}))


def test_a_trunk_without_a_classifier_is_said_to_be_one(saved: Save) -> None:
    state = {name: tensor for name, tensor in weights_of(X).items() if not name.startswith("head")}
    with pytest.raises(DataError, match="has no classifier: it holds the trunk of a network alone"):
        read_foreign_weights(saved(state))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["stem.weight", "s1.b1.norm1.weight", "s1.b1.conv1.weight"], "a RegNetV of timm"),
        (["stem.conv.weight", "final_conv.conv.weight"], "a RegNetZ"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "a ResNet"),
        (["features.0.0.weight", "features.1.conv.0.0.weight"], "a MobileNet"),
        (["cls_token", "blocks.0.attn.qkv.weight"], "a vision transformer"),
        (["a.weight", "b.weight"], "no RegNet with the names of pycls, timm, torchvision"),
    ],
)
def test_another_network_is_refused_by_its_name(saved: Save, names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_foreign_weights(saved({name: torch.zeros(4, 3, 3, 3) for name in names}))


def test_inverted_bottlenecks_are_refused_by_name(saved: Save) -> None:
    state = {name: tensor for name, tensor in weights_of(X).items() if ".proj." not in name and ".b1.bn." not in name}
    with pytest.raises(DataError, match="inverted bottlenecks of a RegNetZ"):
        read_foreign_weights(saved(state))


def test_a_library_that_is_named_must_exist_and_fit(saved: Save) -> None:
    path = saved(as_library("timm", weights_of(X), X))
    assert read_foreign_weights(path, source="timm").source == "timm"
    with pytest.raises(UsageError, match=r"got 'tim' \(did you mean timm\?\)"):
        read_foreign_weights(path, source="tim")
    with pytest.raises(DataError, match="has the names of timm, not of vissl: omit --from"):
        read_foreign_weights(path, source="vissl")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("stem.conv.weight", torch.tensor(1.0), "shapes that are not those of its layers: stem.conv.weight ()"),
        ("head.fc.weight", torch.tensor(1.0), "head.fc.weight ()"),
        ("head.fc.weight", torch.zeros(0, 40), "head.fc.weight (0, 40)"),
        ("s1.b1.f.b.weight", torch.zeros(8), "s1.b1.f.b.weight (8)"),
        ("s1.b1.f.a.weight", torch.zeros(0, 8, 1, 1), "s1.b1.f.a.weight (0, 8, 1, 1)"),
        ("head.fc.weight", torch.zeros(5, 40, dtype=torch.int8), "1 tensor has integers"),
        ("s1.b1.bn.running_var", -torch.ones(8), "variances below 0: s1.b1.bn.running_var"),
    ],
)
def test_tensors_that_no_layer_can_have_are_named(saved: Save, name: str, tensor: torch.Tensor, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_foreign_weights(saved(weights_of(X) | {name: tensor}))
    assert said in str(caught.value)
