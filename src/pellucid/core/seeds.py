"""Seeds of independent draws: each is a hash of what the draw is for, so no random state has to be kept."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from integers and words, e.g. `seed_of("order", seed, epoch)`.

    Different tuples give unrelated seeds (BLAKE2b, 8 bytes), the same tuple the same seed on every machine
    and in every process; `1` and `"1"` differ.
    """
    key = repr(tuple(part if isinstance(part, str) else int(part) for part in parts))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
