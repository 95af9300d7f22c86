"""One thread a test process: the processes share the cores, and sums in a fixed order are the same bits."""

from __future__ import annotations

import os

import hypothesis
import torch

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # of processes that tests start
    os.environ.setdefault(name, "1")
torch.set_num_threads(1)

hypothesis.settings.register_profile("pellucid", deadline=None)  # first calls import; the machine may be busy
hypothesis.settings.load_profile("pellucid")
