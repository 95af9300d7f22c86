"""The digits that come with scikit-learn: 1797 images of 8x8 grey pixels."""

from __future__ import annotations

import numpy as np
import torch

from pellucid.core.data.splits import MemorySplit, Parts, holdout

DIGITS_TEST = 450


def read_digits(budget: int) -> Parts:
    from sklearn.datasets import load_digits

    table = load_digits()
    pixels = np.rint(table.images * 255 / 16).astype(np.uint8)[:, None]
    whole = MemorySplit(torch.from_numpy(pixels), torch.from_numpy(table.target.astype(np.int64)), budget)
    kept, held = holdout(whole.labels, DIGITS_TEST / len(whole), "digits")
    classes = tuple(str(digit) for digit in range(10))
    return Parts(classes, whole.take(kept), None, whole.take(held), flip=False)
