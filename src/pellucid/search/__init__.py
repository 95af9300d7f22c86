"""Search over the flags of any command: a study of trials, each of which runs the command in its own folder.

The plan is a YAML file:

    grid:                       values of flags; every combination is one trial
      lr: [0.2, 0.05]
      synthesize.weight: [1, 10]      a flag of one of several commands
    fixed:                      flags with the same value in every trial, and positional arguments, by name
      checkpoint: runs/teacher
      folder: "{synthesize}"          the folder that an earlier command of the same trial wrote
    score: distill.json:1.validation  a JSON file in the command's folder and the keys of a number in it; of a list of
                                      scores, the first ranks the trials; none may be measured on test images
    direction: maximize

Commands joined by `+` run one after the other. Every trial runs in its own process and prints to `log.txt` in its
folder. With TPE (Bergstra et al. 2011) a flag may have a range {low, high, log, int} instead of a list of values.

Several workers can share a study, by its folder or by the URL of a database. Trials are numbered uniquely, and the
number determines the point of the grid, so no two workers run the same point. If a worker dies, another one runs its
trial again in the same folder, where commands that can resume continue.
"""
