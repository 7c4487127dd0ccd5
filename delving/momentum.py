"""Momentum SGD: torch's fused update, without what torch.optim loads and does around it."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.sgd import sgd


class Momentum:
    """v <- m v + (g + d w), w <- w - lr v for groups of parameters, each with its own decay d.

    torch.optim.SGD computes the same, but loads torch's compiler for it, which takes longer than
    a hundred steps of a small net.

    Attributes:
        param_groups: dicts of `params` and `weight_decay`.
        velocity: {parameter: v} of the parameters that have been moved.
    """

    def __init__(self, groups: Sequence[dict], *, momentum: float):
        self.param_groups = list(groups)
        self.momentum = momentum
        self.velocity: dict[nn.Parameter, torch.Tensor] = {}

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float | torch.Tensor, unless: torch.Tensor | None = None) -> None:
        """Moves the parameters that have a gradient.

        Args:
            lr: a number, or a () tensor on the parameters' GPU.
            unless: a () fp32 tensor on that GPU, 0 or 1: if it is 1 nothing is moved.
        """
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            if self.momentum:
                fresh = [p for p in moved if p not in self.velocity]
                self.velocity.update((p, torch.zeros_like(p)) for p in fresh)
            sgd(
                [_in_order(p, p) for p in moved],
                [_in_order(p.grad, p) for p in moved],
                [_in_order(self.velocity.get(p), p) for p in moved],
                fused=moved[0].device.type in ("cpu", "cuda"),
                weight_decay=group["weight_decay"],
                momentum=self.momentum,
                lr=lr,
                found_inf=unless,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )


def _in_order(x: torch.Tensor | None, p: torch.Tensor) -> torch.Tensor | None:
    """x with its dimensions as they lie if those of p are channels last, as torch's operator copies
    each gradient that is not contiguous."""
    last = p.dim() == 4 and not p.is_contiguous()
    return x.permute(0, 2, 3, 1) if last and x is not None else x
