"""What comes with this package, by the names that users know it by: name -> "module:object".

Each is imported when it is asked for. `core` reads these tables by name and knows no idea itself.
"""

from __future__ import annotations

# --layers NAME: functions of options that make a rule (core.network.rules).
LAYERS = {
    "plain": "pellucid.core.network.rules:plain",
    "deconv": "pellucid.whiten.rule:deconv",
    "csc": "pellucid.sparse.rule:csc",
    "csc-all": "pellucid.sparse.rule:csc_all",
    "subnet": "pellucid.edgepopup.rule:subnet",
    "decomposed": "pellucid.classfilters.install:rule",
}

# --objective NAME: functions of options that make an Objective (core.train.objective).
OBJECTIVES = {
    "cross-entropy": "pellucid.core.train.objective:Objective",
    "class-gates": "pellucid.classfilters.gates:ClassGates",
    "selectivity": "pellucid.classfilters.selectivity:Selectivity",
    "distillation": "pellucid.distillation.objective:Distillation",
}

# "encoding" in a file's table: functions that make a state dict of it (core.network.checkpoint).
ENCODINGS = {"subnet": "pellucid.edgepopup.store:decode"}

# --framework NAME: functions that train in another framework than torch (core.train.frameworks).
FRAMEWORKS = {"keras": "pellucid.keras.training:train"}

# pellucid COMMAND: functions that return an exit status (cli, search.plan), in the order of the help text.
COMMANDS = {
    "open": "pellucid.audit.commands:open",
    "train": "pellucid.core.commands:train",
    "evaluate": "pellucid.core.commands:evaluate",
    "convert": "pellucid.core.commands:convert",
    "fold": "pellucid.core.commands:fold",
    "decompose": "pellucid.classfilters.commands:decompose",
    "visualize": "pellucid.views.commands:visualize",
    "pack": "pellucid.edgepopup.commands:pack",
    "robust": "pellucid.robust.commands:robust",
    "invert": "pellucid.inversion.commands:invert",
    "synthesize": "pellucid.distillation.commands:synthesize",
    "assess": "pellucid.distillation.commands:assess",
    "distill": "pellucid.distillation.commands:distill",
    "search": "pellucid.search.commands:search",
}
