"""Fused kernels: kernels.cpp for CPUs; programs.py and pooling.py for CUDA. What they compute is
defined in fused.py, spp.py, stem.py and data/input.py, whose plain forms serve wherever the kernels
cannot run. operator.cpp makes of those of the rectifier an operator of PyTorch's own kind. jpeg.cpp
cuts views out of JPEG files; data/regions.py says out of which."""

import torch

from delving.kernels import gpu, native

KERNELS = {"cpu": native, "cuda": gpu}  # by device


def is_watched() -> bool:
    """Whether something records the operators that run, or runs others in their place:
    torch.compile, a tracer, torch.func. Kernels called without torch's dispatcher would escape it.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0  # torch has no public name for it
        or is_transformed()
    )


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work, such as vmap or grad."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
