"""Edge-popup (Ramanujan et al. 2020, arXiv:1911.13299): subnetworks of random weights, found by training scores.

`pellucid.subnet(model, keep=0.3)` (`layers`) masks any network. `mask` is the pure maths, `draw` makes the random
weights, `rule` is `--layers subnet`, `store` writes a subnetwork as a seed and one bit per weight, `plain` bakes it
into an ordinary network.
"""
