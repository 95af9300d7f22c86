"""Which known networks have the tensors in a file: looked up by their names and shapes, the last layer left out.

The index (architectures.json, made by benchmarks/core/architectures.py) holds a fingerprint of every built-in,
published, torchvision and timm architecture. Several networks may have the same tensors and compute different things,
by another stride, pooling or activation: the index tells them apart, as groups of names that compute the same.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import heapq
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.core.files.align import canonical_name, strip

INDEX = Path(__file__).with_name("architectures.json")
_SKETCH, _BYTES = 12, 3  # numbers in a sketch, and bytes of each
_LEAST = 8  # tensors of a network; fewer tell nothing
_MOST_PREFIXES = 200

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Meaning:
    """Known networks that compute the same from the same tensors.

    Attributes:
        names: for --model, the built-in one first, those of libraries last.
        differs: what tells them from others with these tensors, such as "stem of stride 2, max-pool"; "" if there are
            none.
    """

    names: tuple[str, ...]
    differs: str

    def __str__(self) -> str:
        return f"{self.names[0]} ({self.differs})" if self.differs else self.names[0]


def meanings(state: Mapping[str, Tensor]) -> list[Meaning]:
    """The known networks whose tensors are those in `state`, whatever its last layer, its channels and its prefix."""
    shapes = {name: tuple(tensor.shape) for name, tensor in strip(state).items()}
    index = _index()
    for part in _parts(shapes):
        lines = _lines(part)
        found = {key: None for head in index["heads"] if (key := _digest(lines, head)) in index["networks"]}
        if found:
            groups = [group for key in found for group in index["networks"][key]]
            return [Meaning(tuple(names), differs) for names, differs in groups]
    return []


def nearest(state: Mapping[str, Tensor], count: int = 3) -> list[str]:
    """The known networks whose tensors are most like those in `state`, the most alike first."""
    shapes = {name: tuple(tensor.shape) for name, tensor in strip(state).items()}
    own = set(sketch(_lines(shapes)))
    index = _index()
    alike = {
        name: len(own & set(_unpacked(packed))) / _SKETCH
        for key, packed in index["sketches"].items()
        for name in index["networks"][key][0][0][:1]
    }
    best = heapq.nlargest(count, alike.items(), key=lambda pair: pair[1])
    return [name for name, share in best if share > 0]


def fingerprint(shapes: Shapes, head: Collection[str]) -> str:
    """The fingerprint of a network's tensors without those of its last layer.

    Args:
        shapes: of the tensors in its state dict, by name.
        head: names of the modules that return the logits.
    """
    return _digest(_lines(shapes), head)


def sketch(lines: Mapping[str, str]) -> list[int]:
    """The smallest hashes of a network's tensors (bottom-k MinHash, Broder 1997): alike networks share many."""
    size = 2 ** (8 * _BYTES)
    hashes = {int.from_bytes(hashlib.sha256(line.encode()).digest()[:8], "big") % size for line in lines.values()}
    return sorted(hashes)[:_SKETCH]


def packed(shapes: Shapes) -> str:
    """The sketch of a network's tensors, as the index holds it."""
    return base64.b64encode(b"".join(n.to_bytes(_BYTES, "big") for n in sketch(_lines(shapes)))).decode()


def _unpacked(text: str) -> list[int]:
    content = base64.b64decode(text)
    return [int.from_bytes(content[at : at + _BYTES], "big") for at in range(0, len(content), _BYTES)]


@functools.cache
def _index() -> dict[str, Any]:
    """The tables "networks" (fingerprint -> groups), "sketches" (fingerprint -> sketch), "heads" (lists of names)."""
    content: dict[str, Any] = json.loads(INDEX.read_text())
    return content


def _lines(shapes: Shapes) -> dict[str, str]:
    """A line per tensor: its name as other code bases have it as well, and its shape.

    Channels of images are left out, and so are counters of batches, which older files do not have.
    """
    lines = {}
    for name, shape in shapes.items():
        if name.rpartition(".")[2] not in ("num_batches_tracked", "n_averaged"):
            free = len(shape) > 2 and shape[1] <= 4
            own = canonical_name(name)
            lines[own] = f"{own} {[*shape[:1], '*', *shape[2:]] if free else [*shape]}"
    return lines


def _digest(lines: Mapping[str, str], head: Collection[str]) -> str:
    kept = sorted(line for name, line in lines.items() if name.rpartition(".")[0] not in head)
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]


def _parts(shapes: Shapes) -> Iterator[Shapes]:
    """All tensors, and then those below each prefix that many share, for a network that is part of a larger module."""
    yield shapes
    counts: dict[str, int] = {}
    for name in shapes:
        for end in (match.end() for match in re.finditer(r"\.", name)):
            counts[name[:end]] = counts.get(name[:end], 0) + 1
    prefixes = sorted((prefix for prefix, count in counts.items() if count >= _LEAST), key=len)
    for prefix in prefixes[:_MOST_PREFIXES]:
        yield {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
