"""A training step's launches, recorded once as a CUDA graph and then replayed: for a small net,
launching one by one takes several times as long as what is launched."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook as has_global_hook

from delving.data.loader import Batch
from delving.momentum import Momentum
from delving.net import Dropout, Features, Net, is_looked_at
from delving.rectifier import PReLU, Rectifier
from delving.spp import SPP
from delving.step import is_finite

EAGER = 3  # steps before the recording, in which kernels are compiled and algorithms chosen
ALIKE = 1e-3, 1e-2  # relative change of loss and squared norm when sums have another order
ONE_BY_ONE = "steps are launched one by one"
# Modules known to launch the same in each step, and to wait for nothing.
KNOWN = {Net, Features, nn.Sequential, nn.Conv2d, nn.Linear, nn.MaxPool2d, SPP, Dropout, Rectifier,
         PReLU}  # fmt: skip


def can_be_replayed(net: nn.Module, device: torch.device) -> bool:
    """Whether all that a step of this net does can be recorded. Whatever looks at a step from
    Python, such as a hook, would not see the replayed ones."""
    if device.type != "cuda" or {type(m) for m in net.modules()} - KNOWN:
        return False
    looked_at = (
        has_global_hook()
        or torch.is_anomaly_enabled()
        or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in net.parameters())
    )
    whole = all(p.dtype == torch.float32 for p in net.parameters())  # as the learning rate is
    return whole and not looked_at and not any(map(is_looked_at, net.modules()))


class Ahead:
    """An iterator whose next item can be fetched before it is asked for. An error in fetching is
    raised when the item is asked for."""

    def __init__(self, items: Iterable):
        self.items, self.fetched = iter(items), []

    def fetch(self) -> object:
        """The next item, which is still to be iterated; None if there is none, or an error."""
        if not self.fetched:
            try:
                self.fetched.append((next(self.items), None))
            except Exception as error:  # StopIteration too
                self.fetched.append((None, error))
        return self.fetched[0][0]

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        self.fetch()
        item, error = self.fetched.pop()
        if not error:
            return item
        try:
            raise error
        finally:
            # The error holds this frame, and so the training's. In such a cycle the recording and
            # its memory would stay until the cycle is collected, perhaps in a loader process.
            del error


class Replay:
    """Runs the steps of one training on batches of one size, as a recording after the first few.

    Args:
        gradients: does forward and backward of a batch; returns step.py's `show`.
        seed: seeds a step before it runs.
    """

    def __init__(
        self,
        net: Net,
        optimizer: Momentum,
        *,
        gradients: Callable[[Batch], Tensor],
        seed: Callable[[int], None],
    ):
        self.optimizer, self.gradients, self.seed = optimizer, gradients, seed
        self.layers = [m for m in net.modules() if isinstance(m, Dropout)]
        self.device = next(net.parameters()).device
        self.rate = torch.zeros((), device=self.device)
        self.still = torch.zeros((), device=self.device)  # 1: no weight is to be moved
        self.batch: Batch | None = None
        self.held: Batch | None = None  # the one copied to `batch` for the next step
        self.graph: torch.cuda.CUDAGraph | None = None
        self.generators: list[torch.Generator] = []
        self.count, self.set_rate, self.found = 0, None, None
        self.host: Tensor | None = None
        self.done = torch.cuda.Event()

    def start(self, batch: Batch, step: int, lr: float) -> None:
        """Launches a step, which moves the weights unless what it found is not finite."""
        with torch.cuda.device(self.device):
            self._start(batch, step, lr)

    def _start(self, batch: Batch, step: int, lr: float) -> None:
        if self.held is not batch:
            self.hold(batch)
        self.held = None
        if lr != self.set_rate:
            self.rate.fill_(lr)
            self.set_rate = lr
        self.seed(step)
        if self.count == EAGER:
            self._record()
        self.count += 1
        if self.graph is None:
            self.found = self._launch()
        else:
            self._replay()
        if self.host is None:
            pinned = self.device.type == "cuda"
            self.host = torch.empty(self.found.shape, dtype=self.found.dtype, pin_memory=pinned)
        self.host.copy_(self.found, non_blocking=True)
        self.done.record()

    def wait(self) -> tuple[Tensor, bool]:
        """What `gradients` returned for the step, on the CPU, and whether it was finite."""
        self.done.synchronize()
        found = self.host.clone()
        return found[:-1], not found[-1]

    def hold(self, batch: Batch) -> None:
        """Copies a batch to where the recorded step reads it, after the step that was started.

        Raises:
            ValueError: it has another size than those before it.
        """
        self.held = batch
        if self.batch is None:
            held = (torch.empty_like(x, device=self.device) for x in batch[:3])
            self.batch = Batch(*held, [])
        for held, x in zip(self.batch[:3], batch[:3], strict=True):
            if held.shape != x.shape:
                raise ValueError(f"a batch of {tuple(x.shape)} after those of {tuple(held.shape)}")
            held.copy_(x, non_blocking=True)

    def _launch(self) -> Tensor:
        self.optimizer.zero_grad()
        found = self.gradients(self.batch)
        fault = (~is_finite(found)).float()
        self.optimizer.step(self.rate, unless=torch.maximum(fault, self.still))
        return torch.cat([found, fault[None]])

    def _replay(self) -> None:
        for layer, generator in zip(self.layers, self.generators, strict=True):
            generator.manual_seed(layer.key)
        self.graph.replay()

    def _record(self) -> None:
        """Records the step and compares what the recording finds with what the launched step finds;
        a recording that finds another loss or gradient is not used."""
        self.still.fill_(1)
        wanted = self._launch().tolist()
        self._try_to_record()
        if self.graph is not None:
            self._replay()
            found = self.found.tolist()
            alike = [math.isclose(found[n], wanted[n], rel_tol=share)
                     for n, share in zip((0, 2), ALIKE, strict=True)]  # fmt: skip
            if not wanted[-1] and not all(alike):
                told = f"loss and squared norm of {found[:3:2]}, not {wanted[:3:2]}"
                warnings.warn(f"{ONE_BY_ONE}: {told}", stacklevel=2)
                self.graph = None
        self.still.fill_(0)

    def _try_to_record(self) -> None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        self.generators = [torch.Generator(self.device) for _ in self.layers]
        for layer, generator in zip(self.layers, self.generators, strict=True):
            _register(graph, generator.manual_seed(layer.key))
            layer.recorded = generator
        self.optimizer.zero_grad()  # before recording, while memory can be handed back
        try:
            # Other threads load images meanwhile, and may do what a recording forbids. A recording
            # that fails leaves its stream the current one.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                self.found = self._launch()
        except RuntimeError as error:  # mostly no memory for two sets of responses
            told = str(error).partition("\n")[0]
            warnings.warn(f"{ONE_BY_ONE}: {told}", stacklevel=2)
            self.optimizer.zero_grad()
        else:
            self.graph = graph
        finally:
            for layer in self.layers:
                layer.recorded = None


def _register(graph: torch.cuda.CUDAGraph, generator: torch.Generator) -> None:
    """Makes a recorded generator draw anew in each replay, from the seed that it has then. Since
    torch 2.15 a generator sees to that itself, and the call only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(graph, "register_generator_state"):
            graph.register_generator_state(generator)
