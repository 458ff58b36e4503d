"""Small tensors gain nothing from threads, and a busy machine loses by them."""

import torch

torch.set_num_threads(1)
