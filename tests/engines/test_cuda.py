import gc
import sys

import numpy as np
import pytest

from regnet_deploy.engines.cuda import Cuda
from regnet_deploy.errors import MissingExtra, RegnetDeployError


@pytest.mark.parametrize("machine", ["11.4.0.106"], indirect=True)
class TestCuda:
    def test_what_is_copied_in_comes_out(self, machine):
        cuda = Cuda()
        here, there = cuda.pinned((2, 3)), cuda.memory(24)
        here[:] = np.arange(6).reshape(2, 3)
        cuda.copy_in(there, here)
        back = cuda.pinned((2, 3))
        cuda.copy_out(back, there)
        cuda.wait()
        assert np.array_equal(back, here)
        assert back.dtype == np.float32

    def test_a_captured_graph_does_nothing_until_it_is_replayed(self, machine):
        cuda = Cuda()
        here, there, back = cuda.pinned((4,)), cuda.memory(16), cuda.pinned((4,))
        here[:], back[:] = 1, 0
        graph = cuda.capture(lambda: (cuda.copy_in(there, here), cuda.copy_out(back, there)))
        assert back.sum() == 0
        here[:] = 2
        cuda.replay(graph)
        cuda.wait()
        assert back.tolist() == [2, 2, 2, 2]

    def test_all_is_given_back(self, machine):
        cuda = Cuda()
        cuda.pinned((4,)), cuda.memory(16), cuda.capture(lambda: None)
        assert machine.cuda.blocks
        del cuda
        gc.collect()
        assert machine.cuda.blocks == {}
        assert machine.cuda.calls[-4:] == ["cudaGraphExecDestroy", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"]

    @pytest.mark.parametrize(
        ("take", "says"),
        [
            (
                lambda cuda: cuda.memory(2**31),
                r"2048\.0 MiB on the GPU could not be allocated: out of memory; end other",
            ),
            (
                lambda cuda: cuda.pinned((2**20, 512)),
                r"2048\.0 MiB of pinned memory could not be allocated: out of memory",
            ),
        ],
    )
    def test_memory_that_is_short_is_one_line_with_how_much(self, machine, take, says):
        with pytest.raises(RegnetDeployError, match=says):
            take(Cuda())

    def test_a_call_that_fails_is_one_line_with_cudas_words(self, machine):
        cuda = Cuda()
        machine.cuda.fails["cudaStreamSynchronize"] = "cudaErrorIllegalAddress"
        with pytest.raises(
            RegnetDeployError, match=r"CUDA failed at cudaStreamSynch.+: .+ \(cudaErrorIllegalAddress\)"
        ):
            cuda.wait()

    def test_a_driver_that_is_too_old_is_one_line_with_what_to_install(self, machine):
        machine.cuda.fails["cudaSetDevice"] = "cudaErrorInsufficientDriver"
        machine.cuda.cudaRuntimeGetVersion = lambda: (machine.cuda.cudaError_t.cudaSuccess, 13050)
        with pytest.raises(RegnetDeployError) as caught:
            Cuda()
        assert str(caught.value) == (
            "CUDA does not start: cuda-bindings is for CUDA 13.5, and the NVIDIA driver is 580.95.05 and knows CUDA "
            "13.0 at most: install a newer one, or pip install 'cuda-bindings<13'"
        )

    def test_work_that_fails_while_it_is_captured_leaves_the_stream_usable(self, machine):
        cuda = Cuda()
        with pytest.raises(ZeroDivisionError):
            cuda.capture(lambda: 1 / 0)
        cuda.wait()
        assert not machine.cuda.is_capturing


def test_the_real_runtime_without_a_driver_is_one_line():
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings (extra [trt])")
    from regnet_deploy.engines.gpu import find_gpu

    if find_gpu() is not None:
        pytest.skip("needs a machine without a CUDA device")
    with pytest.raises(RegnetDeployError, match=r"CUDA does not start: the NVIDIA driver is not loaded; install it"):
        Cuda()


def test_without_cuda_bindings_the_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.delitem(sys.modules, "cuda.bindings", raising=False)
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime", raising=False)
    with pytest.raises(MissingExtra, match=r"this needs cuda.*pip install 'regnet-deploy\[trt\]'"):
        Cuda()


@pytest.mark.gpu
def test_on_a_gpu_what_is_copied_in_comes_out_and_graphs_replay():
    from regnet_deploy.engines.gpu import find_gpu

    if find_gpu() is None:
        pytest.skip("needs a CUDA device")
    cuda = Cuda()
    here, there, back = cuda.pinned((1000,)), cuda.memory(4000), cuda.pinned((1000,))
    graph = cuda.capture(lambda: (cuda.copy_in(there, here), cuda.copy_out(back, there)))
    for value in (1.0, 2.0):
        here[:] = value
        cuda.replay(graph)
        cuda.wait()
        assert np.array_equal(back, here)
