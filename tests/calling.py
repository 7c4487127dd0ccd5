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


class Crash(BaseException):
    """Stands for the process's end: not an Exception, so that nothing swallows it."""


def silent(*_):
    """Watches, and says nothing."""


def exit_code(*words):
    """The exit code of a command."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["delving", *map(str, words)])
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which cli.main changes
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
    """Does `work` in a child process, killed as it calls owner.name with arguments of `which`."""
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
    """A PYTHONPATH of these folders and what it holds already, such as a cluster's packages."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_apart(program, *words, **environment):
    """Runs a Python program in a process of its own, which can import the tests' modules too."""
    here = os.path.dirname(__file__)
    path = python_path(here, os.path.join(here, "data"), os.path.dirname(here))
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
