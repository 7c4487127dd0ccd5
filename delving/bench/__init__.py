"""`delving bench`: how fast its parts run here, beside plain PyTorch and this machine's own limits.

Ways that are compared take turns in one run, A B A B, and the figure is their ratio; a limit is
measured in that run too.
"""
