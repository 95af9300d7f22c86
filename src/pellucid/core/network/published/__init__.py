"""Networks whose published weights other projects share, in those projects' own arithmetic.

A module here holds one project's table of names (see `core.network.projects`), or a family of networks that only such
projects need. The projects of an idea live with the idea.
"""
