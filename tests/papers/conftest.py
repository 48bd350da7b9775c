"""Load every claim before any test swaps the registry for an empty one.

A module is imported once in a process: were it first imported under a swapped registry, its claims
would be lost to the tests after.
"""

from regard.papers.standing import discover

discover()

# A program of its own, whose toy checks would meet the real ones here.
collect_ignore = ["toy_checks.py"]
