"""Fused kernels: kernels.cpp for CPUs, programs.py for CUDA. What they compute stands in
rectifier.py and spp.py, whose plain forms serve wherever these cannot run. jpeg.cpp cuts views out
of JPEG files; data/regions.py says of which."""

from delving.kernels import gpu, native

KERNELS = {"cpu": native, "cuda": gpu}  # by device
