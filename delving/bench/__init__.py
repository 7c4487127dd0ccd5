"""`delving bench`: how fast the parts are here, beside plain PyTorch and this machine's own limits.

Every figure is a ratio of two ways measured in turns in one process, A B A B, or stands beside a
limit measured in the same run.
"""
