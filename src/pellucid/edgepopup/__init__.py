"""Edge-popup (Ramanujan et al. 2020, arXiv:1911.13299): find subnetworks of random weights by training scores.

subnet           `pellucid.subnet(model, keep=0.3)`: mask a whole network, in place
rule             the same as `--layers subnet`
layers           mask a single layer; list the masked ones
parametrization  the module that makes a masked weight of random weights and scores
ranking          rank the scores of all layers together
mask             the maths: exact top-k masks and the straight-through gradient
draw             random weights as a function of seed and place
options          the options, checked
store            a file with a seed and one bit per weight
plain            a masked network as an ordinary one
"""
