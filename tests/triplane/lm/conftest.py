"""Tiny models: a second thread only waits for the first, and on a busy machine makes a test a hundred times slower."""

import torch

torch.set_num_threads(1)
