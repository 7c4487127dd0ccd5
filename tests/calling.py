"""`delving` called in this process, as its console script calls it."""

import contextlib
import io
import os
import subprocess
import sys
import warnings

import pytest

from delving import cli


def exit_code(*words):
    """What a command ends with."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["delving", *map(str, words)])
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which it changes
        with pytest.raises(SystemExit) as end:
            cli.main()
    return end.value.code


def call(*words):
    """(exit code, stdout, stderr) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code(*words)
    return code, out.getvalue(), err.getvalue()


def run_apart(program, *words, **environment):
    """A Python program in a process of its own, where tests' modules can be imported too."""
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.join(here, "data"), os.path.dirname(here)])
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
