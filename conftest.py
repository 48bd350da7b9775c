"""What must be so before any module of the package, or any test, is imported."""

import os

import torch

# Kernels run in Triton's interpreter where there is no GPU; Triton reads this on import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Under pytest-xdist every core already has a process of its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
