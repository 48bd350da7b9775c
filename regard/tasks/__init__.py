"""Tasks that measure attention: generators, scores, oracles and chance.

`regard.tasks.task("mqar", length=128)` makes one by name; `regard.tasks.list()` is the table.
"""

from regard.tasks.base import PATTERNS, Batch, Numbers, Task, Tokens
from regard.tasks.registry import get, names, register, task
from regard.tasks.registry import listing as list

__all__ = [
    "PATTERNS",
    "Batch",
    "Numbers",
    "Task",
    "Tokens",
    "get",
    "list",
    "names",
    "register",
    "task",
]
