import gc
import logging
import weakref
from dataclasses import replace

import pytest

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.kernel_cache import KernelCache, kernel_cache
from regnet_deploy.engines.session import deserialize_engine

ADA = EngineOptions.up_to(4, compute_capabilities=("8.9",))


@pytest.fixture
def settings(rtx_machine, onnx_of):
    """Return a maker of settings of contexts."""
    engine = deserialize_engine(rtx_machine.library, rtx_machine.build(onnx_of("fp32"), ADA)).engine
    return engine.create_runtime_config


def attached(cache, settings):
    """Attach settings of a context, and return the kernels that it finds."""
    one = settings()
    cache.attach(one)
    return one._cache()._entries


def test_all_contexts_use_one_cache_and_the_file_has_what_they_compiled(settings, tmp_path):
    path = tmp_path / "folder" / "a.kernels"
    cache = KernelCache(path)
    first, second = attached(cache, settings), attached(cache, settings)
    assert first is second
    first.add(("kernel", 2))
    cache.save()
    assert attached(KernelCache(path), settings) == {("kernel", 2)}


def test_a_file_is_written_only_if_kernels_were_compiled(settings, tmp_path):
    path = tmp_path / "a.kernels"
    cache = KernelCache(path)
    cache.save()
    assert not path.exists()
    attached(cache, settings).add(("kernel", 2))
    cache.save()
    path.unlink()
    cache.save()
    again = KernelCache(path)
    attached(again, settings)
    assert not path.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"x" + data])
def test_a_damaged_file_is_replaced(settings, tmp_path, caplog, damage):
    path = tmp_path / "a.kernels"
    cache = KernelCache(path)
    attached(cache, settings).add(("kernel", 2))
    cache.save()
    path.write_bytes(damage(path.read_bytes()))
    fresh = KernelCache(path)
    with caplog.at_level(logging.WARNING):
        found = attached(fresh, settings)
    assert found == set()
    assert [record.getMessage() for record in caplog.records] == [f"kernel cache {path} is damaged and is replaced"]
    found.add(("kernel", 4))
    fresh.save()
    assert attached(KernelCache(path), settings) == {("kernel", 4)}


def test_kernels_of_another_gpu_or_version_are_compiled_again(rtx_machine, fakes, settings, tmp_path, caplog):
    path = tmp_path / "a.kernels"
    cache = KernelCache(path)
    attached(cache, settings).add(("kernel", 2))
    cache.save()
    other = fakes.fake_tensorrt("11.4.0.106", rtx_machine.cuda, device="RTX 5090", rtx=True)
    with caplog.at_level(logging.WARNING):
        assert attached(KernelCache(path), other.ICudaEngine().create_runtime_config) == set()
    assert not caplog.records


def test_a_folder_that_cannot_be_written_is_said_once_and_the_kernels_are_still_shared(settings, tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = KernelCache(tmp_path / "file" / "a.kernels")
    with caplog.at_level(logging.WARNING):
        attached(cache, settings).add(("kernel", 2))
        cache.save()
        cache.save()
    (read, written) = [record.getMessage() for record in caplog.records]
    assert "cannot be read: Not a directory; kernels are compiled" in read
    assert "cannot be written: " in written
    assert attached(cache, settings) == {("kernel", 2)}


def test_an_engine_has_one_cache_in_a_process_as_long_as_it_is_used(rtx_machine, tmp_path):
    library, gpu = rtx_machine.library, rtx_machine.gpu
    cache = kernel_cache(library, gpu, b"plan")
    path = cache._path
    assert kernel_cache(library, gpu, b"plan") is cache
    assert path.parent == tmp_path / "cache" / "regnet-deploy" / "kernels"
    assert path.name.startswith("NVIDIA-RTX-4090-tensorrt-rtx-11.4.0.106-")
    others = kernel_cache(library, gpu, b"other"), kernel_cache(library, replace(gpu, driver="999.1"), b"plan")
    assert len({path, *(other._path for other in others)}) == 3
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
