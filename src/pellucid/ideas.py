"""What comes with this package, by the names that users type: name -> "module:object".

Each is imported when it is asked for. `core` reads these tables and knows no idea itself.
"""

from __future__ import annotations

# --layers NAME: functions from options to a rule (core.network.rules).
LAYERS = {
    "plain": "pellucid.core.network.rules:plain",
    "deconv": "pellucid.whiten.rule:deconv",
    "csc": "pellucid.sparse.rule:csc",
    "csc-all": "pellucid.sparse.rule:csc_all",
    "subnet": "pellucid.edgepopup.rule:subnet",
    "decomposed": "pellucid.classfilters.install:rule",
}

# A rule of the layers above -> rules that do a part of what it does, so that the two make no sense together.
INCLUDES = {"csc-all": ("csc",)}

# --objective NAME: functions from options to an Objective (core.train.objective).
OBJECTIVES = {
    "cross-entropy": "pellucid.core.train.objective:Objective",
    "class-gates": "pellucid.classfilters.gates:ClassGates",
    "selectivity": "pellucid.classfilters.selectivity:Selectivity",
    "distillation": "pellucid.distillation.objective:Distillation",
}

# "encoding" in a file's table: functions that decode it to a state dict (core.network.checkpoint).
ENCODINGS = {"subnet": "pellucid.edgepopup.store:decode"}

# PROJECT:NAME for --model: published networks and how their checkpoints are read (core.network.projects).
PROJECTS = {
    "huyvnphan": "pellucid.core.network.published.huyvnphan:PROJECT",
    "hidden-networks": "pellucid.edgepopup.published:PROJECT",
    "sdnet": "pellucid.sparse.published:PROJECT",
    "deconvolution": "pellucid.whiten.published:PROJECT",
}

# --framework NAME: functions that train with another framework than torch (core.train.frameworks).
FRAMEWORKS = {"keras": "pellucid.keras.training:train"}

# pellucid COMMAND: functions that return an exit status (cli, search.plan), in the order of the help text.
COMMANDS = {
    "open": "pellucid.audit.commands:open",
    "train": "pellucid.core.commands.train:train",
    "evaluate": "pellucid.core.commands.evaluate:evaluate",
    "convert": "pellucid.core.commands.convert:convert",
    "fold": "pellucid.core.commands.fold:fold",
    "export": "pellucid.core.commands.export:export",
    "decompose": "pellucid.classfilters.commands:decompose",
    "visualize": "pellucid.views.commands:visualize",
    "pack": "pellucid.edgepopup.commands:pack",
    "robust": "pellucid.robust.commands:robust",
    "invert": "pellucid.inversion.commands:invert",
    "synthesize": "pellucid.distillation.commands.synthesize:synthesize",
    "assess": "pellucid.distillation.commands.assess:assess",
    "distill": "pellucid.distillation.commands.distill:distill",
    "search": "pellucid.search.commands:search",
}
