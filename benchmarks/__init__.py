"""Speed of the kernels on this machine, beside PyTorch and beside what the machine can do: python -m benchmarks.run."""
