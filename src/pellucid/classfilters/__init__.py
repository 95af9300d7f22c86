"""Decomposing the Deep (Badola, Roy, Padmanabhan, Lal 2021, arXiv:2112.07719): the few filters that decide each class.

`pellucid.decompose(model, data)` finds them (`find`). `evidence` makes one pass over images and scores filters, `rules`
chooses sets (`sets`), `head` is the linear layer that sees nothing else, `install` puts it into a network.
"""
