"""What all tests share: one thread, so that they are reproducible and leave the other cores alone."""

import torch

torch.set_num_threads(1)
