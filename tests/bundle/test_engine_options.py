import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.bundle.engine_options import RTX_DEFAULT, EngineOptions, capability, rtx_capabilities
from regnet_deploy.errors import BundleError, UsageError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"min_batch": 0}, "batches of 0 to 32 images tuned for 8 are impossible: 1 <= min_batch"),
        ({"max_batch": 4}, "batches of 1 to 4 images tuned for 8"),
        ({"tuned_batch": 2, "min_batch": 3}, "batches of 3 to 32 images tuned for 2"),
        ({"optimization_level": 6}, "optimization level 6 is not one of 0 to 5"),
        ({"workspace_bytes": 0}, "a workspace of 0 bytes is not possible"),
        ({"hardware_compatible": "ampere"}, r"'ampere' \(did you mean ampere\+\?\); there are ampere\+, same-compute"),
        ({"compute_capabilities": ("89",)}, "'89' is not a compute capability such as 8.9"),
    ],
)
def test_what_no_builder_takes_is_one_line(options, says):
    with pytest.raises(UsageError, match=says) as caught:
        EngineOptions(**options)
    assert "\n" not in str(caught.value)


options = st.builds(
    EngineOptions,
    min_batch=st.integers(1, 4),
    tuned_batch=st.integers(4, 8),
    max_batch=st.integers(8, 64),
    workspace_bytes=st.none() | st.integers(1, 2**40),
    optimization_level=st.integers(0, 5),
    tf32=st.booleans(),
    version_compatible=st.booleans(),
    hardware_compatible=st.sampled_from([None, "ampere+", "same-compute-capability"]),
    compute_capabilities=st.lists(st.sampled_from(RTX_DEFAULT), unique=True).map(tuple),
)


@given(options)
def test_options_come_back_from_json_and_have_no_numbers_of_tensorrts_in_it(made):
    data = made.to_json()
    assert EngineOptions.from_json(data) == made
    assert all(isinstance(value, bool | int | str | list | None) for value in data.values())
    assert data["hardware_compatible"] in (None, "ampere+", "same-compute-capability")


def test_an_option_of_another_version_is_one_line():
    with pytest.raises(BundleError, match="unknown field max_bach"):
        EngineOptions.from_json({"max_bach": 3})


@pytest.mark.parametrize(("most", "tuned"), [(1, 1), (4, 4), (8, 8), (256, 8)])
def test_the_tuned_batch_is_the_usual_one_or_the_largest(most, tuned):
    assert EngineOptions.up_to(most, tf32=True) == EngineOptions(tuned_batch=tuned, max_batch=most, tf32=True)


def test_each_runtime_refuses_the_others_options():
    with pytest.raises(UsageError, match=r"compute capabilities \(8\.9\) can be chosen for tensorrt-rtx only"):
        EngineOptions(compute_capabilities=("8.9",)).suited_to("tensorrt")
    for option in ({"version_compatible": True}, {"hardware_compatible": "ampere+"}):
        with pytest.raises(UsageError, match=f"{next(iter(option))} is an option of tensorrt"):
            EngineOptions(**option).suited_to("tensorrt-rtx")
        assert EngineOptions(**option).suited_to("tensorrt") == EngineOptions(**option)


def test_tensorrt_rtx_has_its_gpus_by_name_in_the_options():
    assert EngineOptions().suited_to("tensorrt-rtx").compute_capabilities == RTX_DEFAULT
    assert EngineOptions(compute_capabilities=("7.5",)).suited_to("tensorrt-rtx").compute_capabilities == ("7.5",)


def test_fp8_starts_at_8_9():
    assert rtx_capabilities("fp16") == RTX_DEFAULT
    assert rtx_capabilities("fp8-1x1") == ("8.9", "12.0", "12.1")
    assert capability("12.0") > capability("8.9")
