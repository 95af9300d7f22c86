"""Data sets from networks, and students from data sets.

`pellucid.synthesize` fills class folders with inverted images (`resume` begins a folder, `shards` holds its files),
`pellucid.assess` judges them (`manifolds`, `leak`), and `pellucid.distill` (`student`, with the training objective in
`objective`) trains a student on them, next to its controls.
"""
