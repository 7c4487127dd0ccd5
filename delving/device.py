"""Which device computes, in which precision, and how much memory the machine has for it."""

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from delving.words import count

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h's
MEMORY, GROUPS, LIMITS = map(Path, ("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup"))
FILE_PAGES = ("active_file", "inactive_file")


def pick_device(name: str, *, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """`auto` is CUDA, else the CPU; MPS, which has neither float64 nor our operators, is taken only
    by name. Each of several ranks takes a GPU of its own.

    Raises:
        ValueError: a device that is not here, one that several ranks cannot share, or fewer GPUs
            than ranks on this machine.
    """
    device = _pick_for_one(name)
    if local_size == 1 or device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    if device.type != "cuda" or device.index is not None:
        raise ValueError(f"device={name}: {local_size} ranks need auto, cuda or cpu")
    # SLURM may show each task only its own GPU, but not to torchrun's ranks within a job.
    if count == 1 and "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return torch.device("cuda", 0)
    if local_size > count:
        raise ValueError(f"{local_size} ranks on this machine (LOCAL_WORLD_SIZE), but {count} GPUs")
    return torch.device("cuda", local_rank)


def _pick_for_one(name: str) -> torch.device:
    here = ["cpu", "mps"] if torch.backends.mps.is_available() else ["cpu"]
    if torch.cuda.is_available():
        here = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *here]
    if name == "auto":
        return torch.device(here[0])
    if name not in here:
        raise ValueError(f"device={name}: here there is {', '.join(here)} (or auto)")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies in it, else fp32.

    ours: training and testing run in bf16 where the hardware has it; slopes, their gradients and
    the loss stay fp32.
    """
    if name == "fp64" and device.type == "mps":
        raise ValueError("precision=fp64: mps has none")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    return _asked("_is_avx512_bf16_supported") or _asked("_is_amx_tile_supported")


def _asked(check: str) -> bool:
    # Private names, hence getattr: should torch rename them, the answer is no, not an error.
    return getattr(torch.cpu, check, lambda: False)()


def number_type(precision: str) -> torch.dtype:
    """The weights' type. fp64 is for comparisons that the order of sums must not disturb."""
    return torch.float64 if precision == "fp64" else torch.float32


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in fp32 at least, for losses and probabilities."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def prepare_backend(device: torch.device, *, search: bool = True) -> None:
    """Sets up the process: denormals are flushed to zero (they slow a CPU tenfold), freed memory is
    kept on a CPU, cuDNN searches for its fastest algorithms at each new shape if `search`, and
    keeps fp32 (which it rounds to TF32 otherwise).
    """
    torch.set_flush_denormal(True)
    if device.type == "cpu":
        _keep_memory()
    if device.type == "cuda":
        if device.index is not None:  # plain "cuda" is the current one, and set_device refuses it
            torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = search
        torch.backends.cudnn.allow_tf32 = False


def _keep_memory() -> None:
    """Keeps freed tensors' pages in the process, for the next tensors. glibc would hand large ones
    back to the system, which clears them anew in every step: a fifth of a step's time at scale
    quarter.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never trim


def settle(device: torch.device) -> None:
    """Waits until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory() -> None:
    """Hands kept memory back to the system, after work that may have been the last of its kind."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def memory(told: Path = GROUPS, root: Path = LIMITS) -> int:
    """The memory this process may use, in bytes: the machine's, or less in a container or a
    cluster's job.

    Args:
        told: the file that lists its control groups; root: where their limits lie.
    """
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for limit, _ in _limits(told, root))])


def free_memory(about: Path = MEMORY, told: Path = GROUPS, root: Path = LIMITS) -> int:
    """What is still free of `memory`, in bytes, by the machine and by its control groups; three
    quarters of `memory` if the system does not tell."""
    whole = memory(told, root)
    found = re.search(r"^MemAvailable: *(\d+) kB$", _read(about), re.MULTILINE)
    free = 1024 * int(found[1]) if found else whole * 3 // 4
    return max(0, min([whole, free, *(limit - used for limit, used in _limits(told, root))]))


def _limits(told: Path, root: Path) -> Iterator[tuple[int, int]]:
    """The limit and the use, in bytes, of each control group that limits this process's memory."""
    for line in _read(told).splitlines():
        _, kinds, group = line.split(":", 2)
        if "memory" in kinds.split(","):
            top, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif not kinds:  # cgroups v2
            top, limit, used = root, "memory.max", "memory.current"
        else:
            continue
        own = Path(group.lstrip("/"))
        for place in (top / part for part in (own, *own.parents)):  # each limits those below it
            if (most := _read(place / limit).strip()).isdigit():
                yield int(most), _in_use(place, used)


def _in_use(place: Path, used: str) -> int:
    """Bytes that a control group holds, without the files it has read: their pages are given up
    where room is needed."""
    told = dict(re.findall(r"^(\w+) (\d+)$", _read(place / "memory.stat"), re.MULTILINE))
    # cgroups v1 tells the groups below by names of their own.
    files = [told.get(f"total_{kind}", told.get(kind, 0)) for kind in FILE_PAGES]
    return max(0, int(_read(place / used).strip() or 0) - sum(map(int, files)))


@contextmanager
def advising(hint: str) -> Iterator[None]:
    """If a GPU's memory does not suffice, the error ends with `hint`, on what takes less of it.

    Raises:
        RuntimeError: the memory does not suffice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        told = str(error).partition(". ")[0]  # the rest is about the allocator
        raise RuntimeError(f"{told}: {hint}") from error


def without_search() -> AbstractContextManager:
    """Turns off cuDNN's search for the fastest algorithm, which prepare_backend asks for: on images
    of hundreds of shapes it would run for each shape."""
    tf32 = torch.backends.cudnn.allow_tf32
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=tf32)


def name_device(device: torch.device, ranks: int = 1) -> str:
    if ranks > 1:
        return f"{ranks} x {name_device(device)}"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = name_processor() if device.type == "cpu" else platform.machine()
    return f"{device.type} ({named}, {count(torch.get_num_threads(), 'thread')})"


def name_processor(about: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model if the system tells it, else its architecture; and the vector and matrix
    units that PyTorch uses, on which the last bits of every result depend."""
    model = re.search(r"^model name\s*:(.*)$", _read(about), re.MULTILINE)
    noise = r"\((?:R|TM)\)|@.*|\b(?:CPU|Processor|\d+-Core)\b"
    name = " ".join(re.sub(noise, " ", model[1]).split()) if model else ""
    matrices = " and AMX" if _asked("_is_amx_tile_supported") else ""
    return f"{name or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}{matrices}"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
