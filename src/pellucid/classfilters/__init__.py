"""Decomposing the Deep (Badola, Roy, Padmanabhan, Lal 2021, arXiv:2112.07719): the few filters that decide each class.

`pellucid.decompose(model, data)` finds them (`find`). `evidence` makes one pass over the images and holds the table of
the rules' formulas, `rules` chooses a set of filters per class (`sets`; `top`, `omp`, `lasso`, `refit`), `head` is the
linear layer that reads nothing else, and `install` puts it into a network. `fit` and `logistic` train it; `controls`,
`curve`, `ablation`, `overlap`, `selectivity` and `stability` measure sets; `gates` trains a network that has them;
`edit` changes what a network decides.
"""
