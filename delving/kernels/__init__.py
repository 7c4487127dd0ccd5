"""Fused kernels: kernels.cpp for CPUs; programs.py and pooling.py for CUDA. What they compute
stands in fused.py, spp.py, stem.py and data/input.py, whose plain forms serve wherever these
cannot run. jpeg.cpp cuts views out of JPEG files; data/regions.py says of which."""

from delving.kernels import gpu, native

KERNELS = {"cpu": native, "cuda": gpu}  # by device
