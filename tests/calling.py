"""`delving` called in this process, as its console script calls it."""

import contextlib
import io
import os
import signal
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


def killed_at(owner, name, work, which=lambda *arguments: True):
    """Does `work` in a process of its own, killed as it calls owner.name with such arguments."""
    real = getattr(owner, name)

    def mortal(*arguments, **keywords):
        if which(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **keywords)

    child = os.fork()
    if not child:
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, mortal)
                work()
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def python_path(*folders):
    """These first; what is found by the variable here, as a cluster's packages may be, stays."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_apart(program, *words, **environment):
    """A Python program in a process of its own, where tests' modules can be imported too."""
    here = os.path.dirname(__file__)
    path = python_path(here, os.path.join(here, "data"), os.path.dirname(here))
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
