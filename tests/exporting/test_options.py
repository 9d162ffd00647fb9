import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.precision import PRECISIONS


def test_auto_needs_validation_images():
    with pytest.raises(UsageError, match=r"--precision auto measures accuracy .*--data DIR"):
        ExportOptions(auto=True)


@pytest.mark.parametrize("name", ["int8", "int8-1x1", "int8-cpu", "fp8-1x1"])
def test_what_is_quantised_needs_real_images(name):
    with pytest.raises(UsageError, match=f"{name} must be calibrated on real images: .*--calibration DIR"):
        ExportOptions(precisions=(PRECISIONS[name],))


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_what_is_not_needs_none(name):
    assert ExportOptions(precisions=(PRECISIONS[name],)).calibration is None


@pytest.mark.parametrize("folder", ["data", "calibration"])
def test_either_folder_will_do(tmp_path, folder):
    assert ExportOptions(precisions=(PRECISIONS["int8"],), **{folder: tmp_path})
