"""Search over the flags of any command: a study of trials, each the command itself in a folder of its own.

The plan is a YAML file:

    grid:                       values of flags; every combination is a trial
      lr: [0.2, 0.05]
      synthesize.weight: [1, 10]      of one of several commands
    fixed:                      flags that stay, positional arguments by their name
      checkpoint: runs/teacher
      folder: "{synthesize}"          what an earlier command of the same trial wrote
    score: distill.json:1.accuracy    JSON file in the folder, and what to read of it; several: the first decides
    direction: maximize

Commands that are joined by `+` run one after the other. Every trial is a process of its own; what it prints is in
`log.txt` of its folder. Instead of a list, TPE takes a range {low, high, log, int} (Bergstra et al. 2011).

Several workers share a study by its folder or by a database's URL. A trial's number is unique in it, and of a grid the
number is the point: no two workers ever run the same one. A trial whose worker has died is run again by another, in the
same folder, where commands that resume go on.
"""
