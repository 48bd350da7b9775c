"""What the API pages must know of Regard: examples in docstrings are code, values take fields."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(>>> .*(?:\n(?!\s*\n).+)*)", re.MULTILINE)


class House(griffe.Extension):
    """Fence the examples of docstrings, and show how a `@value` is made."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Put the examples of a docstring, each up to the next blank line, into a code block."""
        if obj.docstring and ">>> " in obj.docstring.value and "```" not in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(r"\n```python\n\1\n```\n", obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Do the same for the face of the package."""
        self.on_object(obj=pkg)

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Give a frozen value the `__init__` that its fields make."""
        if "__init__" in cls.members or "value" not in {str(d.value) for d in cls.decorators}:
            return
        fields = [
            griffe.Parameter(
                member.name,
                annotation=member.annotation,
                kind=griffe.ParameterKind.positional_or_keyword,
                default=member.value,
            )
            for member in cls.members.values()
            if isinstance(member, griffe.Attribute)
            and member.annotation is not None
            and "instance-attribute" in member.labels
        ]
        init = griffe.Function("__init__", parent=cls, parameters=griffe.Parameters(*fields))
        cls.set_member("__init__", init)
