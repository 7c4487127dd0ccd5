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
            # torch's operator allocates velocities only for all parameters at once, and does not
            # fill them if `unless` is 1.
            fresh = [p for p in moved if p not in self.velocity] if self.momentum else []
            if unless is not None or len(fresh) < len(moved):
                self.velocity.update((p, torch.zeros_like(p)) for p in fresh)
            velocities = [self.velocity.get(p) for p in moved]
            sgd(
                moved,
                [p.grad for p in moved],
                velocities,
                fused=moved[0].device.type in ("cpu", "cuda"),
                weight_decay=group["weight_decay"],
                momentum=self.momentum,
                lr=lr,
                found_inf=unless,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            if self.momentum:
                self.velocity.update(zip(moved, velocities, strict=True))
