"""The same nets as anybody would write them in plain PyTorch, against which ours are measured."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.data.loader import Batch
from delving.net import Dropout, Net
from delving.rectifier import PReLU, Rectifier
from delving.step import Recipe


class PlainSPP(nn.Module):
    """torch's adaptive max pooling, level by level."""

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_max_pool2d(x, b).flatten(1) for b in self.levels], 1)


def make_plain(net: Net) -> nn.Module:
    """The net with modules replaced by torch's own (nn.PReLU, nn.ReLU, nn.Dropout), in NCHW."""
    chain = [*net.features, PlainSPP(net.spp.levels), *net.classifier]
    plain = nn.Sequential(*map(_plain_of, chain))
    return plain.to(memory_format=torch.contiguous_format)


def _plain_of(module: nn.Module) -> nn.Module:
    if isinstance(module, PReLU):
        return nn.PReLU(module.slope.numel()).to(module.slope.device)
    if isinstance(module, Rectifier):
        return nn.LeakyReLU(module.initial) if module.initial else nn.ReLU()
    return nn.Dropout(module.p) if isinstance(module, Dropout) else module


def plain_steps(
    net: nn.Module, batch: Batch, recipe: Recipe, prepare: Callable, autocast: Callable
) -> Callable[[int], None]:
    """A function that takes `count` plain steps: autocast, foreach SGD, the loss read each time."""
    decay = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.lr, foreach=True, **decay)
    net.train()

    def run(count: int) -> None:
        for _ in range(count):
            x = prepare(batch).contiguous()
            with autocast():
                logits = net(x)
            loss = F.cross_entropy(logits.float(), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return run
