"""torchrun starts the ranks, ends them together, and restarts them where one was lost.

Each start takes seconds, so what the ranks then do is tested in test_ranks, in forked processes.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from smoke import WORDS, differences, outcome
from test_ranks import free_port, trained

from delving import record
from delving.checkpoint import load_checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(root, *options, words=(), wrapper=()):
    command = [*wrapper, *TORCHRUN, *options, "-m", "delving", "train", *WORDS,
               f"output_root={root}", *words]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)  # fmt: skip
    process.root = root
    return process


def finish(process, seconds=120):
    """The process's output, once nothing of it is left running."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            for pid in (process.pid, *ranks_of(process.root).values()):
                os.kill(pid, signal.SIGKILL)
            process.communicate()
    return output


def ranks_of(root):
    """{rank: pid} of the processes that train below a root."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = dict(v.partition(b"=")[::2]
                             for v in (folder / "environ").read_bytes().split(b"\0"))  # fmt: skip
        except OSError:
            continue
        if f"output_root={root}".encode() in words and b"RANK" in variables:
            found[int(variables[b"RANK"])] = int(folder.name)
    return found


def wait_for_step(root, step, seconds=60):
    """Waits for a checkpoint of that step or a later one; returns the run's folder."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for folder in record.list_runs(str(root)):
            saved = load_checkpoint(folder) if (folder / "checkpoint").is_dir() else None
            if saved and saved[1]["progress"]["step"] >= step:
                return folder
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.long
def test_two_processes_train_a_run_and_one_speaks(whole, root):
    process = start(root, "--standalone", "--nproc-per-node=2")
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("generated images (scale smoke)") == 1
    assert output.count("deviations from the paper's recipe, see") == 1
    [folder] = record.list_runs(str(root))
    result = record.read_result(folder)
    assert result["device"].startswith("2 x cpu")
    assert [e["event"] for e in outcome(folder)["log"]] == [
        e["event"] for e in outcome(whole)["log"]
    ]


@pytest.mark.long
def test_a_slip_is_told_once_and_ends_all(root):
    process = start(root, "--standalone", "--nproc-per-node=2", words=["train.lrr=1"])
    output = finish(process)
    assert process.returncode != 0
    assert output.count("delving: there is no 'train.lrr'") == 1
    assert 'File "' not in output.split("delving: there is no")[0]


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_within_a_minute_and_nobody_is_left(root, tally, victim):
    words = ["train.epochs=400"]
    process = start(root, "--standalone", "--nproc-per-node=2", words=words)
    try:
        wait_for_step(root, 2)
        os.kill(ranks_of(root)[victim], signal.SIGKILL)
        started = time.monotonic()
    finally:
        output = finish(process, 90)
    took = time.monotonic() - started
    tally(f"rank {victim} of 2 killed: the others end", 1, int(took > 60), f"{took:.1f} s")
    assert process.returncode != 0, output
    assert took < 60
    assert ranks_of(root) == {}


@pytest.mark.long
def test_with_restarts_a_killed_rank_changes_nothing(root, tmp_path_factory, tally):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(root / "data", other / "data")
    words = ["train.epochs=12", "train.log_every=5"]
    unbroken = trained(other, 2, *words)
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    process = start(root, *options, words=words)
    try:
        for victim, step in ((1, 4), (0, 15)):
            wait_for_step(root, step)
            os.kill(ranks_of(root)[victim], signal.SIGKILL)
            time.sleep(1)
    finally:
        output = finish(process)
    assert process.returncode == 0, output
    [folder] = record.list_runs(str(root))
    found = differences(folder, unbroken)
    assert len(record.read_events(folder, "resume")) >= 1
    tally("a rank killed twice under --max-restarts: bit for bit", 2, len(found))
    assert found == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_torchrun_saves_and_ends_all(whole, root, name):
    process = start(root, "--standalone", "--nproc-per-node=2", words=["train.epochs=400"])
    try:
        folder = wait_for_step(root, 2)
        process.send_signal(getattr(signal, name))
    finally:
        output = finish(process)
    assert process.returncode != 0
    assert output.count("the same command goes on from there") == 1, output
    assert load_checkpoint(folder)[1]["progress"]["step"] >= 2
    assert not (folder / "lock").exists()


# --- two machines ---
@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable, as command prefixes; skips where not permitted."""
    if not shutil.which("ip") or os.geteuid():
        pytest.skip("network namespaces need iproute2 and root")
    tag = f"dl{os.getpid() % 10_000}"
    names = [f"{tag}a", f"{tag}b"]

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True)

    try:
        if any(ip("netns", "add", name).returncode for name in names):
            pytest.skip("no right to make network namespaces")
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for number, name in enumerate(names, 1):
            ip("link", "set", name, "netns", name)
            inside = ["-n", name]
            ip(*inside, "addr", "add", f"10.77.9.{number}/24", "dev", name)
            ip(*inside, "link", "set", name, "up")
            ip(*inside, "link", "set", "lo", "up")
        yield [["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={name}"]
               for name in names]  # fmt: skip
    finally:
        for name in names:
            ip("netns", "delete", name)


def on_two_hosts(root, hosts, *, words=(), per_host=1, restarts=0):
    port = free_port()
    return [
        start(
            root, "--nnodes=2", f"--node-rank={number}", f"--nproc-per-node={per_host}",
            f"--max-restarts={restarts}", "--master-addr=10.77.9.1", f"--master-port={port}",
            words=words, wrapper=host,
        )
        for number, host in enumerate(hosts)
    ]  # fmt: skip


@pytest.mark.long
def test_two_machines_train_what_two_processes_train(root, two_hosts, tmp_path_factory, tally):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(root / "data", other / "data")
    unbroken = trained(other, 2)
    processes = on_two_hosts(root, two_hosts)
    outputs = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    [folder] = record.list_runs(str(root))
    found = differences(folder, unbroken)
    tally("two hosts against two processes of one: bit for bit", 1, len(found))
    assert found == []


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_on_one_machine_ends_those_of_the_other(root, two_hosts, tally, victim):
    processes = on_two_hosts(root, two_hosts, words=["train.epochs=400"])
    try:
        wait_for_step(root, 2)
        os.kill(ranks_of(root)[victim], signal.SIGKILL)
        started = time.monotonic()
    finally:
        for process in processes:
            finish(process, 90)
    took = time.monotonic() - started
    tally(f"two hosts, the rank of host {victim} killed: both end", 1, int(took > 60),
          f"{took:.1f} s")  # fmt: skip
    assert all(process.returncode for process in processes)
    assert took < 60
    assert ranks_of(root) == {}
