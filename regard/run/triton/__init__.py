"""The kernels nobody else has: survey, and decode over paged or selected keys.

They run on a GPU, and in Triton's interpreter where TRITON_INTERPRET=1 is set before the import.
"""

from regard.run.triton.availability import why_not_here
from regard.run.triton.executor import TritonExecutor

__all__ = ["TritonExecutor", "why_not_here"]
