"""A device that is not the CPU, for machines that have no other. It uses the CPU's memory, but as
with a GPU no operator takes tensors of both devices, and NumPy cannot see the device's.

It can be set up once in a process, before anything else asks torch for devices of this kind.
"""

import contextlib

import safetensors.torch
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "other"
CROSSING = ("aten::_to_copy", "aten::copy_")  # these take numbers from one device to the other
# The indices that these take may be on the CPU.
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Elsewhere(Tensor):
    """A tensor of the other device; `inner` is its memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device(NAME, 0), requires_grad=requires_grad,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return compute(operator, args, kwargs or {})

    def tolist(self):
        return self.inner.tolist()


class Kept(TorchDispatchMode):
    """Catches operators that are given a device but no tensor, such as `zeros`."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return compute(operator, args, kwargs or {})


def compute(operator, args, kwargs):
    """An operator's result, computed by the CPU and put on the device where it belongs."""
    name, given = operator._schema.name, tree_leaves((args, kwargs))
    theirs = [x for x in given if isinstance(x, Elsewhere)]
    ours = [x for x in given if isinstance(x, Tensor) and not isinstance(x, Elsewhere)]
    if name in CROSSING:
        there = isinstance(args[0], Elsewhere)
    else:
        there = bool(theirs)
        check_one_device(name, theirs, ours)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner = {id(x.inner): x for x in theirs}  # altered in place, a tensor stays itself
    unwrapped = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    found = operator(*unwrapped[0], **unwrapped[1])

    def wrap(x):
        if not there or not isinstance(x, Tensor):
            return x
        return inner[id(x)] if id(x) in inner else Elsewhere(x)

    return tree_map(wrap, found)


def check_one_device(name, theirs, ours):
    """As on CUDA: only a tensor without dimensions, a number, may join from the CPU."""
    if not theirs or (name in INDEXING and isinstance(theirs[0], Elsewhere)):
        return
    alone = all(x.dim() == 0 for x in theirs) and any(x.dim() for x in ours)
    if alone or any(x.dim() for x in ours):
        shapes = [(x.device.type, tuple(x.shape)) for x in (*theirs, *ours)]
        raise RuntimeError(f"{name}: tensors of two devices, {shapes}")


class Generator:
    """The CPU's draws serve for the other device."""

    def __new__(cls, device="cpu"):
        return DRAWS("cpu" if torch.device(device).type == NAME else device)


DRAWS, SAVE = torch.Generator, safetensors.torch.save


def put_up():
    """Sets the device up, for as long as the process lives; returns it."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    torch.Generator = Generator
    # `module.to` would give a parameter another tensor's type, but not its memory.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    safetensors.torch.save = lambda tensors: SAVE({k: x.cpu() for k, x in tensors.items()})
    return torch.device(NAME, 0)


@contextlib.contextmanager
def at_work():
    """Operators are computed as above; `torch.tensor(..., device=...)` in two steps, since torch
    would otherwise bypass `Kept`."""
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Kept():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
