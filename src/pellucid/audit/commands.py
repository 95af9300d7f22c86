"""The command `open`.

Nothing heavy is imported until it runs.
"""

from __future__ import annotations

import json as json_
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.core.errors import InputError
from pellucid.core.flags import ClassedSettings
from pellucid.core.ranges import Count, Seed
from pellucid.core.train.settings import TrainSettings

if TYPE_CHECKING:
    from pellucid.audit.page import Report

# What is trained where no model is named: small enough for seconds on two cores.
DEMO = TrainSettings(data="digits", model="resnet20", epochs=15, batch_size=64, schedule="one-cycle", warmup=0.2)


def open(
    checkpoint: str | None = None,
    /,
    *,
    source: ClassedSettings,
    out: str = "report",
    gate: list[str] | None = None,
    max_images: Count | None = None,
    device: str = "auto",
    batch_size: Count | None = None,
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Audit a network: write a page on what it knows, what it confuses and what it withstands, and audit.json.

    Without a model, a small one is first trained on scikit-learn's digits.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint as MODEL=FILE (or FILE with --model), a file
            that only predicts (.onnx, onnx:FILE, .pt2), or the name of an architecture (resnet18, timm:resnet18), which
            is built with random weights.
        out: folder for the page (index.html) and audit.json.
        gate: conditions on the numbers in audit.json, such as "accuracy.top1 >= 0.95"; if one fails, the exit status
            is 1.
        max_images: maximum number of test images, sampled with --seed; default all.
        device: auto, cpu, cuda, ...
        batch_size: images per forward pass; default 512, or fewer for images beyond 45 x 45 pixels.
        seed: of noise, samples, and the weights of an architecture.
        overwrite: replace files at --out that this command did not write.
        json: print the content of audit.json and nothing else.
        quiet: print nothing but errors.
    """
    from pellucid.audit import page
    from pellucid.audit.gates import Gate
    from pellucid.core import terminal
    from pellucid.core.device import choose_device
    from pellucid.core.files.ours import check_outputs, holds, outputs
    from pellucid.core.files.ours import page as page_of_ours
    from pellucid.core.source import open_source

    wanted = [Gate.parse(text) for text in gate or []]  # a malformed one must not cost the work before it
    files = {"index.html": page_of_ours, "audit.json": holds("schema", "made", "model", "data")}
    check_outputs(outputs(out, files), overwrite, command="open", sources=[checkpoint, source.data])
    choose_device(device)
    if checkpoint is None:
        if source.data is not None or source.model is not None:
            raise InputError("--data and --model go with a checkpoint: name it, or train one with pellucid train.")
        from pellucid.core.train.loop import train

        if not (json or quiet):
            terminal.say("No model named: training a small network on digits.")
        checkpoint = str(train(DEMO, quiet=json or quiet).run.path)
    found = open_source(checkpoint, source, device=device, seed=seed)
    if not (json or quiet):
        terminal.assumed(found.assumed)
    report = page.open(
        found.model,
        found.dataset,
        out,
        gate=wanted,
        max_images=max_images,
        device=found.device,
        batch_size=batch_size,
        seed=seed,
        run=found.run,
        source=found.title,
        assumed=found.assumed,
    )
    if json:
        print(json_.dumps(report.audit, indent=1, allow_nan=False))
    elif not quiet:
        show(report)
    return 0 if report.passed else 1


def show(report: Report) -> None:
    """Print the findings, the gates, and where the page is."""
    from pellucid.core import terminal

    for sentence in report.findings:
        terminal.say(sentence)
    if report.gates:
        rows = [[str(r.gate), f"{r.value:.4g}", "passes" if r.passed else "fails"] for r in report.gates]
        terminal.show("Gates", ["gate", "value", ""], rows)
    terminal.say(f"Numbers: {report.path.parent / 'audit.json'}")
    terminal.say(f"Page: {report.path}")
    source = report.audit["model"]["source"]
    if source is not None and not report.gates and (Path(source) / "settings.yaml").is_file():
        floor = math.floor(100 * report.audit["accuracy"]["interval"][0])
        terminal.say(f"Next: pellucid open {shlex.quote(source)} --gate 'accuracy.top1 >= {floor}%'")
