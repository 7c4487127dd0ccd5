"""Fused kernels: kernels.cpp for CPUs, gpu.py for CUDA. What they compute stands in rectifier.py
and spp.py, whose plain forms serve wherever these cannot run."""
