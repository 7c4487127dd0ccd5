"""Bias and rectifier, forward and backward: the fused operator against eager PyTorch's."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from delving.bench.limits import TYPES, copy_rate
from delving.bench.rounds import Row, compare, in_turns, seconds_each
from delving.config import compose
from delving.device import name_device, pick_device, pick_precision, prepare_backend
from delving.fused import rectify
from delving.replay import EAGER

# A layer of A at the paper's size, which no cache holds; on a CPU the same with fewer images, and a
# layer of small14 at scale cpu.
ON_A_GPU, ON_A_CPU = [(128, 256, 56, 56)], [(8, 256, 56, 56), (32, 16, 9, 9)]
PASSES = 5  # over the responses, at least: forward a read and a write, backward two and one


def bench_rectifier(words: Sequence[str], rounds: int) -> list[Row]:
    config = compose(list(words))
    device = pick_device(config.device)
    prepare_backend(device)
    precision = pick_precision(config.precision, device)
    shapes = ON_A_GPU if device.type == "cuda" else ON_A_CPU
    return [row for shape in shapes for row in _rows(shape, device, precision, rounds)]


def _rows(shape: tuple[int, ...], device: torch.device, precision: str, rounds: int) -> list[Row]:
    number = TYPES[precision]
    x = torch.randn(shape, device=device, dtype=number)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn_like(x)
    bias, slope = (
        torch.full((shape[1],), v, device=device, requires_grad=True) for v in (0.1, 0.25)
    )
    nothing = torch.zeros(1, device=device)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: rectify(x, bias, slope, True),
        "fused ReLU": lambda: rectify(x, bias, nothing, False),
        "eager PReLU": lambda: F.prelu(_biased(x, bias), slope.to(number)),
        "eager ReLU": lambda: F.relu(_biased(x, bias)),
    }
    leaves = (x, bias, slope)

    def timed(way: Callable[[], Tensor]) -> Callable[[], float]:
        def once() -> None:
            torch.autograd.grad(way(), leaves, grad, allow_unused=True)

        return lambda: 1e3 * seconds_each(recorded(once, device), device)

    found = in_turns({name: timed(way) for name, way in ways.items()}, rounds)
    limit = 1e3 * PASSES * x.nbytes / copy_rate(device)
    name = f"bias + PReLU, forward and backward, {precision} {list(shape)}"
    about = {"unit": "ms", "device": name_device(device), "limit": limit}
    return [
        compare(f"{name}: against {other}", found["ours"], found[other], **about)
        for other in list(ways)[1:]
    ]


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The work; on a GPU its launches recorded as a CUDA graph, as a training replays them. One by
    one, a slow CPU would take longer to launch any way's kernels than they take to run."""
    if device.type != "cuda":
        return work
    for _ in range(EAGER):
        work()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _biased(x: Tensor, bias: Tensor) -> Tensor:
    return x + bias.to(x.dtype).view(1, -1, 1, 1)
