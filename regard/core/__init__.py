"""What attention means: rules, partials, calls. Imports torch and numpy only."""

from regard.core.call import Call
from regard.core.partial import Partial, merge
from regard.core.rule import Rule
from regard.core.weigh import Laplace, Relu, Sigmoid, Signed, Softmax, Weigh

__all__ = [
    "Call",
    "Laplace",
    "Partial",
    "Relu",
    "Rule",
    "Sigmoid",
    "Signed",
    "Softmax",
    "Weigh",
    "merge",
]
