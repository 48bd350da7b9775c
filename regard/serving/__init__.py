"""Serve a model with memories that outlive a request.

`Passages` are read once and reused in any prompt; `Conversations` continue from their keys;
`answer_log_probs` scores several answers to one prompt; `think_together` runs threads that see one
another; `Buckets` attends with several rotary bases; `generate_batch` serves many requests at a
time, with policies, surveys and controls by request.
"""

from regard.serving.answers import answer_log_probs
from regard.serving.buckets import Buckets
from regard.serving.continuous_batching import generate_batch
from regard.serving.conversations import Conversations
from regard.serving.passages import Passages
from regard.serving.threads import think_together

__all__ = [
    "Buckets",
    "Conversations",
    "Passages",
    "answer_log_probs",
    "generate_batch",
    "think_together",
]
