"""Images out of a network alone: DeepInversion (Yin et al. 2020, arXiv:1912.08795) and its descendants.

`pellucid.invert(model, targets)` (`invert`) finds images that the network classifies as `targets` and for which every
layer's input statistics match those of a table; `optimize` holds the loop. The parts of the loss and of the search are
small values: `objective`, `matching` (statistics, compared by `divergence`), `priors`, `views`, `start` or `generator`,
and `schedule`; `presets` combines them into recipes. `representation` reconstructs images from one layer's output.
"""
