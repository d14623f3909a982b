import torch

torch.set_num_threads(1)  # the tests' tensors are small, and a bit-exact comparison must not depend on the machine
