"""How far every layer of pellucid.keras is from its torch twin, on each backend and under each dtype policy.

    KERAS_BACKEND=jax python benchmarks/keras/parity.py        measure on this backend: results/keras/parity-jax.jsonl
    python benchmarks/keras/parity.py table                    rewrite the table in docs/keras.md

Each backend may be measured in its own environment. The layers are those of tests/keras_cases.py.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("numpy", "torch", "jax", "tensorflow")
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def measure() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import keras

    from keras_cases import CASES, apart
    from pellucid.core.files.atomic import write_atomic

    rows = []
    for policy in POLICIES:
        keras.config.set_dtype_policy(policy)
        for case in CASES:
            found = apart(case) if policy == "float32" else apart(case, steps=3, rate=0.0)
            rows.append({"layer": case.name, "policy": policy, **found})
            print(rows[-1], flush=True)
    backend, version = keras.backend.backend(), keras.__version__
    text = "".join(json.dumps({"backend": backend, "keras": version, **row}) + "\n" for row in rows)
    write_atomic(ROOT / "results" / "keras" / f"parity-{backend}.jsonl", text)


def table() -> None:
    lines = ["| layer | policy | " + " | ".join(BACKENDS) + " |", "|---" * (2 + len(BACKENDS)) + "|"]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    versions = set()
    for backend in BACKENDS:
        for line in (ROOT / "results" / "keras" / f"parity-{backend}.jsonl").read_text().splitlines():
            row = json.loads(line)
            versions.add(row["keras"])
            gradient = "-" if backend == "numpy" else f"{row['gradient']:.0e}"
            cell = f"{row['output']:.0e}, {gradient}, {row['statistics']:.0e}"
            cells.setdefault((row["layer"], row["policy"]), {})[backend] = cell
    for (layer, policy), found in cells.items():
        lines.append(f"| {layer} | {policy} | " + " | ".join(found[backend] for backend in BACKENDS) + " |")
    lines += ["", f"Output, gradient, statistics. Keras {', '.join(sorted(versions))}, one CPU thread, seed 0."]
    page = ROOT / "docs" / "keras.md"
    made = "\n".join(lines)
    page.write_text(
        re.sub(r"(<!-- parity -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{made}\n{m[2]}", page.read_text(), flags=re.S)
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        table()
    else:
        measure()
