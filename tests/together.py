"""Every kind of layers under every operation: what must come of it.

`python tests/together.py` writes the table in docs. `test_together.py` walks these cells: the table says what that test
has seen.
"""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs" / "together.md"
BEGIN, END = "<!-- The table is written by tests/together.py. -->", "<!-- The end of the table. -->"

# Layers, and their options in a small network of images of 8x8 pixels.
KINDS: dict[str, dict[str, object]] = {
    "plain": {},
    "deconv": {"block": 8},
    "csc": {"lam": 0.05},
    "csc-all": {"lam": 0.05},
    "subnet": {"keep": 0.5},
    "csc+deconv": {"lam": 0.05, "block": 8},
    "deconv+subnet": {"block": 8, "keep": 0.5},
}

OPERATIONS = {
    "statistics": "read its statistics",
    "fold": "fold",
    "decompose": "decompose and apply",
    "variance": "invert by variance",
    "covariance": "invert by covariance",
    "visualize": "visualize",
    "robust": "robust with lambda",
    "save": "save and load",
    "open": "open",
    "distil": "distil from it",
    **{f"to {kind}": f"convert to `{kind}`" for kind in KINDS},
}

NO_LAMBDA = "The model has no sparse-coding layer and thus no lambda: leave out --lam."
PLAIN = "Layers 'plain' replace nothing: pellucid.fold makes plain layers of those that can be."


def has(name: str, rest: str = "") -> str:
    """The sentence about a network of layers `name` that is asked for them again, and perhaps for the `rest` too."""
    return f"This network has layers {name!r} already" + (f": convert it to {rest!r} alone." if rest else ".")


PART = "This network has layers 'csc' already, as a part of 'csc-all'"
INCLUDED = "This network has layers 'csc', which 'csc-all' includes: convert one without them."

# What comes of each operation, kind by kind in the order of KINDS: what it reads or makes, or the sentence that refuses
# it, which ends with a full stop.
CELLS: dict[str, list[str]] = {
    "statistics": [
        "variances of every batch norm",
        "covariances of every layer",
        "variances of every batch norm",
        "variances of every batch norm",
        "variances of every batch norm",
        "covariances; variances after the code",
        "covariances of every layer",
    ],
    "fold": ["yes", "yes", "yes; the code stays", "yes; codes stay", "yes", "yes; the code stays", "yes"],
    "decompose": ["yes"] * 7,
    "variance": ["yes"] * 7,
    "covariance": [
        "of recorded statistics",
        "yes",
        "of recorded statistics",
        "of recorded statistics",
        "of recorded statistics",
        "yes",
        "yes",
    ],
    "visualize": ["by search", "by search", "by decoding", "by decoding", "by search", "by decoding", "by search"],
    "robust": [NO_LAMBDA, NO_LAMBDA, "yes", "yes", NO_LAMBDA, "yes", NO_LAMBDA],
    "save": ["yes", "yes", "yes", "yes", "yes; packed too", "yes", "yes; packed too"],
    "open": ["yes"] * 7,
    "distil": ["yes"] * 7,
    "to plain": [PLAIN] * 7,
    "to deconv": [
        "deconv",
        has("deconv"),
        "csc+deconv",
        "csc-all+deconv",
        "subnet+deconv",
        has("deconv"),
        has("deconv"),
    ],
    "to csc": ["csc", "deconv+csc", has("csc"), f"{PART}.", "subnet+csc", has("csc"), "deconv+subnet+csc"],
    "to csc-all": [
        "csc-all",
        "deconv+csc-all",
        "csc-all",
        has("csc-all"),
        "subnet+csc-all",
        INCLUDED,
        "deconv+subnet+csc-all",
    ],
    "to subnet": [
        "subnet",
        "deconv+subnet",
        "csc+subnet",
        "csc-all+subnet",
        has("subnet"),
        "csc+deconv+subnet",
        has("subnet"),
    ],
    "to csc+deconv": [
        "csc+deconv",
        has("deconv", "csc"),
        has("csc", "deconv"),
        f"{PART}: convert it to 'deconv' alone.",
        "subnet+csc+deconv",
        has("csc"),
        has("deconv", "csc"),
    ],
    "to deconv+subnet": [
        "deconv+subnet",
        has("deconv", "subnet"),
        "csc+deconv+subnet",
        "csc-all+deconv+subnet",
        has("subnet", "deconv"),
        has("deconv", "subnet"),
        has("deconv"),
    ],
}


def cell(operation: str, kind: str) -> str:
    """What comes of an operation on a network of layers `kind`."""
    return CELLS[operation][list(KINDS).index(kind)]


def refused(text: str) -> bool:
    """Whether a cell is a sentence that refuses."""
    return text.endswith(".")


def table() -> str:
    """The cells as markdown: one row an operation, with the sentences numbered below."""
    sentences: list[str] = []
    lines = [f"| | {' | '.join(f'`{kind}`' for kind in KINDS)} |", "|---" * (len(KINDS) + 1) + "|"]
    for operation, words in OPERATIONS.items():
        row = []
        for text in CELLS[operation]:
            if refused(text):
                if text not in sentences:
                    sentences.append(text)
                row.append(f"no ({sentences.index(text) + 1})")
            else:
                row.append(f"`{text}`" if operation.startswith("to ") else text)
        lines.append(f"| {words} | {' | '.join(row)} |")
    lines += ["", *(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))]
    return "\n".join(lines)


def written() -> str:
    """The page in docs with the table as it is now."""
    text = DOCS.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCS.write_text(written(), encoding="utf-8")
