"""The command `pellucid open`. Nothing heavy is imported until it runs."""

from __future__ import annotations

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings
from pellucid.core.train.settings import TrainSettings

# What is trained where no model is named: small enough for seconds on two cores.
DEMO = TrainSettings(data="digits", model="resnet20", epochs=15, batch_size=64, schedule="one-cycle", warmup=0.2)


def open(
    checkpoint: str | None = None,
    /,
    *,
    source: SourceSettings,
    out: str = "report",
    gate: list[str] | None = None,
    device: str = "auto",
    batch_size: int = 512,
    seed: int = 0,
) -> int:
    """Open a network: write a page and audit.json on what it knows, confuses and withstands.

    Without a model, a small one is trained on scikit-learn's digits first.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model), or the name of an
            architecture (resnet18, timm:resnet18), which is built with random weights.
        out: folder of the page (index.html) and of audit.json.
        gate: conditions such as "accuracy.top1 >= 0.95" on audit.json; if one fails the exit status is 1.
        device: auto, cpu, cuda, ...
        batch_size: images in a step.
        seed: what noise, and the weights of an architecture, are drawn from.
    """
    from pellucid.audit import gates as gates_
    from pellucid.audit import page
    from pellucid.core import terminal
    from pellucid.core.device import choose_device
    from pellucid.core.source import open_source

    wanted = [gates_.Gate.parse(text) for text in gate or []]  # a bad one must not cost the work before it
    choose_device(device)
    if checkpoint is None:
        if source.data is not None or source.model is not None:
            raise InputError("--data and --model go with a checkpoint: name it, or train one with pellucid train.")
        from pellucid.core.train.loop import train

        terminal.say("No model named: training a small network on digits.")
        checkpoint = str(train(DEMO).run.path)
    found = open_source(checkpoint, source, device=device, seed=seed)
    report = page.open(
        found.model,
        found.dataset,
        out,
        gate=wanted,
        device=found.device,
        batch_size=batch_size,
        seed=seed,
        run=found.run,
        source=found.title,
    )
    return page.tell(report)
