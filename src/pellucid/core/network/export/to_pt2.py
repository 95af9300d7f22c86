"""A `torch.export` program as the content of a .pt2 file."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from pellucid.core.network.blackbox.about import KEY, About
from pellucid.core.network.export.quiet import silenced


def to_pt2(program: torch.export.ExportedProgram, about: About) -> tuple[bytes, Counter[str]]:
    """The file's content, and how often the program uses each operator."""
    stream = io.BytesIO()
    with silenced():
        torch.export.save(program, stream, extra_files={f"{KEY}.json": about.text()})
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return stream.getvalue(), Counter(str(getattr(call, "overloadpacket", call)) for call in calls)


def run_pt2(content: bytes) -> Callable[[Tensor], Tensor]:
    """The network in what `to_pt2` wrote, by torch's own loader.

    Not for files of others: that loader unpickles, and evaluates text; see `blackbox.pt2`.
    """
    with silenced():
        return torch.export.load(io.BytesIO(content)).module()
