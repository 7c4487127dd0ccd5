"""This process among others of the same program: how they are started, and whether it is one of
several of a run."""

import os
import sys
import sysconfig
from pathlib import Path

RANK, SIZE = "RANK", "WORLD_SIZE"  # as torchrun and SLURM jobs of ours set them
PACKAGE = Path(__file__).parent.parent


def module_command(module: str, *words: str) -> list[str]:
    """The command of a module of this package, to be run with `child_environment`. What lies in
    the folder it is called from, which is the user's, is not imported."""
    return [sys.executable, "-P", "-m", module, *words]


def child_environment(**more: str) -> dict[str, str]:
    """This process's, by which a child finds this very package wherever it was started from."""
    found = os.environ | more
    if str(PACKAGE) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        before = found.get("PYTHONPATH")
        found["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), *([before] if before else [])])
    return found


def are_several() -> bool:
    """Whether torchrun or SLURM started this process as one of several."""
    return os.environ.get(SIZE, "1") not in ("", "1") and RANK in os.environ
