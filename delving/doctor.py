"""`delving doctor`: what this machine has, line by line."""

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from delving.disk import check_writable, nearest_folder

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "typer",
    "rich",
    "matplotlib",
    "pandas",
)


def examine(output_root: str) -> Iterator[tuple[str, str]]:
    """Yields (what, finding): versions, devices, precision, images, disk. A fault is a finding."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield "operators", _operators()
    yield from _devices()
    yield "proposals", _proposals()
    yield "shapes", _shapes(Path(output_root))
    yield "disk", _disk(Path(output_root))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _operators() -> str:
    """Runs a compiled operator: torch and torchvision of unequal builds import, but fail at it."""
    try:
        import torch
        from torchvision.ops import nms
    except (ImportError, OSError) as error:
        return f"torch and torchvision do not load: {str(error).splitlines()[0]}"
    try:
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except RuntimeError as error:
        return f"torchvision does not fit torch: {str(error).splitlines()[0]}"
    return "torchvision's compiled operators load"


def _devices() -> Iterator[tuple[str, str]]:
    try:
        from delving import device as devices
        from delving.kernels.compiled import forget_failures
    except (ImportError, OSError):  # torch does not load, as the line before says
        return
    forget_failures()  # the user may have mended what was in the way
    device = devices.pick_device("auto")
    precision = devices.pick_precision("auto", device)
    scale = "cpu" if device.type == "cpu" else "quarter or paper"
    yield "device", f"{devices.name_device(device)}, precision {precision}; fitting scale: {scale}"
    yield "kernels", _kernels(device.type)
    yield "loading", _loading()
    yield "sharing", _sharing()


def _kernels(kind: str) -> str:
    from delving.kernels import gpu, native
    from delving.kernels.compiled import FAULTS

    if kind == "cpu":
        if native.load() is None:
            return f"none ({FAULTS['kernels.cpp']}): compiled by a C++ compiler they train faster"
        if native.operator() is None:
            fault = FAULTS.get("operator.cpp", "it cannot be registered")
            return f"compiled for this CPU, but not the operator that calls them ({fault})"
        return "compiled for this CPU"
    if kind == "cuda":
        found, fault = gpu.look_for_programs()
        return "Triton's" if found else f"none: {fault}"
    return "none for this device"


def _loading() -> str:
    from delving.data import regions

    if regions.agrees():
        return "of a JPEG file only the region of a view, by libjpeg-turbo"
    return "whole images; a C++ compiler and libjpeg-turbo 2.1 with its headers make it faster"


def _sharing() -> str:
    """Where arms of a seed, trained side by side, leave their batches for one another."""
    from delving.data.memory import MEMORY

    try:
        free = shutil.disk_usage(MEMORY).free / 1e9
    except OSError as error:
        return f"none: {MEMORY}: {error.strerror}"
    return f"of batches in {MEMORY}, {free:.1f} GB free (scale paper: 2 to 6 wanted)"


def _proposals() -> str:
    """How `delving detect` finds where objects might be."""
    try:
        from delving.detect.proposals import pick_method

        method = pick_method("auto")
    except (ImportError, OSError):  # torchvision does not load, as a line before says
        return "none, without torchvision"
    hint = "; `pip install 'delving[detect]'` adds selective search"
    return method.replace("_", " ") + (hint if method == "grid" else "")


def _shapes(output_root: Path) -> str:
    try:
        found = sorted(p.name for p in (output_root / "data").glob("shapes-*"))
    except OSError as error:
        return f"not to be seen: {error.strerror}"
    return ", ".join(found) if found else "not generated yet (the first training does)"


def _disk(output_root: Path) -> str:
    try:
        check_writable(output_root)
        free = shutil.disk_usage(nearest_folder(output_root)).free
    except (OSError, ValueError) as error:
        return str(error)
    return f"{free / 1e9:.1f} GB free for {output_root.resolve()}"
