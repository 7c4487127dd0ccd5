"""Fused kernels: kernels.cpp for CPUs; programs.py and pooling.py for CUDA. What they compute is
defined in fused.py, spp.py, stem.py and data/input.py, whose plain forms serve wherever the kernels
cannot run. operator.cpp makes of those of the rectifier an operator of PyTorch's own kind. jpeg.cpp
cuts views out of JPEG files; data/regions.py says out of which."""

from delving.kernels import gpu, native

KERNELS = {"cpu": native, "cuda": gpu}  # by device
