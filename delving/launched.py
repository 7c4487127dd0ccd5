"""This process among others of the same program: how to start them, and whether it is one of
several that share a run."""

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

RANK, SIZE = "RANK", "WORLD_SIZE"  # as torchrun and our SLURM jobs set them
PACKAGE = Path(__file__).parent.parent


def child(module: str, *words: str, **variables: str) -> dict[str, Any]:
    """The arguments with which `subprocess` runs a module of this very package, wherever that lies,
    and imports nothing from the working directory, which is the user's."""
    environment = os.environ | variables
    if str(PACKAGE) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        before = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), *([before] if before else [])])
    return {"args": [sys.executable, "-P", "-m", module, *words], "env": environment}


def are_several() -> bool:
    """Whether torchrun or SLURM started this process as one of several."""
    return os.environ.get(SIZE, "1") not in ("", "1") and RANK in os.environ
