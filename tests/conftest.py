"""One thread a test process: the processes share the cores, and sums in a fixed order are the same bits."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

import hypothesis

hypothesis.settings.register_profile("pellucid", deadline=None)  # first calls import; the machine may be busy
hypothesis.settings.load_profile("pellucid")
