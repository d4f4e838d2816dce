"""Draws on a GPU: the values of the CPU, by one kernel, and never a wait of the host."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from bigtrain.randomness import DeviceKeys, Draws, philox_torch
from bigtrain.randomness.draws import _compiled
from tests.randomness.paths import assert_normals_agree

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, so draws on one are not tested"),
]
INDICES = {"range": range(3, 500, 4), "list": [7, 2**40], "tensor": torch.tensor([1, 2**63 - 1])}


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def no_waits() -> Iterator[Callable[[], None]]:
    """Call it, and from then on whatever makes the host wait for the GPU is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_the_kernel_is_compiled_here(gpu: torch.device) -> None:
    assert _compiled(gpu) is not None


@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("shape", [(), (1,), (6,), (3, 32, 32)], ids=str)
def test_a_gpu_draws_what_a_cpu_draws(
    indices: range | list[int] | Tensor, shape: tuple[int, ...], gpu: torch.device
) -> None:
    there, here = Draws(1, 2, 3, device=gpu), Draws(1, 2, 3)
    of_gpu = indices.to(gpu) if isinstance(indices, Tensor) else indices
    for step in (0, 16, 999, 2**32 - 1):
        assert torch.equal(there.uniform("u", of_gpu, shape, step).cpu(), here.uniform("u", indices, shape, step))
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            drawn = there.normal("z", of_gpu, shape, step)
            assert drawn.device == gpu
            assert_normals_agree(drawn.cpu(), here.normal("z", indices, shape, step))
    for method in ("integers", "categories"):
        argument = 1000 if method == "integers" else (3, 0, 2)
        drawn, expected = (
            getattr(one, method)("i", rows, argument) for one, rows in ((there, of_gpu), (here, indices))
        )
        assert torch.equal(drawn.cpu(), expected)


def test_torch_draws_the_same_where_the_kernel_cannot_be_compiled(gpu: torch.device) -> None:
    draws = Draws(1, device=gpu)
    key, numbers = draws._key("z"), draws.numbers(range(5))
    assert torch.equal(philox_torch.uniforms(key, numbers, 7, 3), draws.uniform("z", range(5), (7,), 3))
    assert_normals_agree(philox_torch.normals(key, numbers, 7, 3, torch.float32), draws.normal("z", range(5), (7,), 3))


def test_a_draw_is_one_kernel_and_no_copy(gpu: torch.device) -> None:
    from torch.profiler import ProfilerActivity, profile

    draws = Draws(1, device=gpu)
    draws.normal("z", range(128), (3, 32, 32))
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        draws.normal("z", range(128), (3, 32, 32), sampler_step=5)
        torch.cuda.synchronize()
    names = [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(names) == 1, names


def test_a_step_draws_without_a_wait(gpu: torch.device, no_waits: Callable[[], None]) -> None:
    keys = DeviceKeys(1, gpu)
    no_waits()
    for step in range(3):
        keys.fill(step, 0)
        draws = Draws(1, step, device=gpu, keys=keys)
        draws.normal("z", range(16), (3, 8, 8))
        draws.categories("labels", range(16), (5, 0, 3))
        draws.uniform("t", [1, 2])
        Draws(step, device=gpu).integers("other", range(16), 10)


def test_a_captured_graph_draws_with_the_keys_of_each_step(gpu: torch.device) -> None:
    keys = DeviceKeys(1, gpu)
    draws = Draws(1, device=gpu, keys=keys)
    draws.normal("z", range(16), (12,))  # compiles the kernel, and learns the stream
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = draws.normal("z", range(16), (12,))
    for step in (0, 1, 7):
        keys.fill(step, 2)
        graph.replay()
        assert_normals_agree(drawn.cpu(), Draws(1, step, 2).normal("z", range(16), (12,)))


def test_a_stream_that_is_new_to_a_capture_is_refused(gpu: torch.device) -> None:
    draws = Draws(1, device=gpu, keys=DeviceKeys(1, gpu))
    draws.normal("z", range(16), (12,))
    with (
        pytest.raises(AssertionError, match="stream y is drawn for the first time"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        draws.normal("y", range(16), (12,))
