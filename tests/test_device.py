"""Which device computes, in which precision, and what it is called in every record."""

import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from delving import device as devices
from delving.words import count

CPU = torch.device("cpu")


class TestPick:
    def test_what_is_not_here_is_named_beside_what_is(self):
        with pytest.raises(ValueError, match=r"device=cuda:99: here there is .*cpu \(or auto\)"):
            devices.pick_device("cuda:99")

    def test_ranks_share_the_cpu(self):
        assert devices.pick_device("cpu", local_rank=1, local_size=2) == CPU

    def test_each_rank_takes_a_gpu_of_its_own(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        found = [devices.pick_device("auto", local_rank=r, local_size=2) for r in range(2)]
        assert found == [torch.device("cuda", 0), torch.device("cuda", 1)]
        with pytest.raises(ValueError, match=r"3 ranks on this machine .*, but 2 GPUs"):
            devices.pick_device("auto", local_size=3)
        with pytest.raises(ValueError, match="device=cuda:1: 2 ranks need auto, cuda or cpu"):
            devices.pick_device("cuda:1", local_size=2)

    def test_where_a_cluster_shows_each_rank_one_gpu_that_is_its_own(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setenv("SLURM_PROCID", "3")
        found = devices.pick_device("auto", local_rank=3, local_size=4)
        assert found == torch.device("cuda", 0)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "torchrun's, within a job")
        with pytest.raises(ValueError, match=r"4 ranks on this machine .*, but 1 GPUs"):
            devices.pick_device("auto", local_rank=3, local_size=4)


RESIDENT = """
import ctypes, torch
from delving import device as devices
def resident():
    return int(open("/proc/self/statm").read().split()[1])
kept = []
for keep in (False, True):
    if keep:
        devices.prepare_backend(torch.device("cpu"))
    before = resident()
    torch.ones(2**25)
    kept.append(resident() - before)
devices.release_memory()
kept.append(resident() - before)
print(*(round(pages * 4096 / 2**27) for pages in kept))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc here")
def test_a_freed_tensors_memory_is_kept_for_the_next_until_it_is_released():
    command = [sys.executable, "-c", RESIDENT]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.split() == ["0", "1", "0"]


def test_mps_is_taken_where_it_is_named_and_not_by_itself(monkeypatch):
    """MPS lacks float64, in which the Fisher matrix is summed, and our operators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device("auto").type == "cpu"
    assert devices.pick_device("mps").type == "mps"
    with pytest.raises(ValueError, match=r"here there is cpu, mps \(or auto\)"):
        devices.pick_device("cuda")


class TestPrecision:
    @pytest.mark.parametrize("unit", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
    def test_bf16_where_a_cpu_multiplies_in_it(self, monkeypatch, unit):
        for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, check, lambda there=check == unit: there, raising=False)
        assert devices.pick_precision("auto", CPU) == "bf16"
        monkeypatch.setattr(torch.cpu, unit, lambda: False)
        assert devices.pick_precision("auto", CPU) == "fp32"

    def test_fp32_where_torch_no_longer_tells(self, monkeypatch):
        for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.delattr(torch.cpu, check, raising=False)
        assert devices.pick_precision("auto", CPU) == "fp32"

    def test_what_is_asked_for_stands(self):
        assert devices.pick_precision("fp64", CPU) == "fp64"
        with pytest.raises(ValueError, match="precision=fp64: mps has none"):
            devices.pick_precision("fp64", torch.device("mps"))


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "Intel Xeon Platinum 8481C"),
        ("AMD EPYC 9B45 128-Core Processor", "AMD EPYC 9B45"),
        ("Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz", "Intel Core i7-8550U"),
    ],
)
def test_a_cpu_is_called_by_its_model(tmp_path, told, name):
    about = tmp_path / "cpuinfo"
    about.write_text(f"processor\t: 0\nmodel\t\t: 143\nmodel name\t: {told}\nflags\t: fpu\n")
    assert devices.name_processor(about).startswith(name + ", ")


def test_else_by_its_architecture(tmp_path):
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    for about in (arm, tmp_path / "none"):
        assert devices.name_processor(about).startswith(platform.machine() + ", ")


def test_with_its_units_and_the_process_s_threads(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    name = devices.name_device(CPU)
    assert name.endswith(f", AVX512 and AMX, {count(torch.get_num_threads(), 'thread')})")
    assert devices.name_device(CPU, ranks=2) == f"2 x {name}"
