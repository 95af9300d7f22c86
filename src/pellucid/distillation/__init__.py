"""Data sets out of networks, students out of data sets.

`pellucid.synthesize` fills class folders with inverted images, `pellucid.assess` says what they are worth,
`pellucid.distill` (`student`) trains a student on them beside its controls.
"""
