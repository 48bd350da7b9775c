"""Load every claim before any test swaps the registry for an empty one.

A module is imported once in a process: were it first imported under a swapped registry, its claims
would be lost to the tests after.
"""

import regard.papers.ground  # noqa: F401  (for the claims it makes)
