"""Images out of a network alone: DeepInversion (Yin et al. 2020, arXiv:1912.08795) and what came of it.

`pellucid.invert(model, targets)` (`optimize`) finds images that the network classifies as these classes and on which
every layer's statistics are those of its table. One small value says each part of how: `objective`, `matching`
(statistics), `priors`, `views`, `start`, `schedule`; `presets` puts them together.
"""
