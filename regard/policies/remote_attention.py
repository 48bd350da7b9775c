"""Decoding whose attention is computed by other processes, which hold the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regard.core.method import method
from regard.memories.base import KeyMemory
from regard.memories.remote import Remote
from regard.memories.workers import AttentionWorkers
from regard.models.site import Site, Sites
from regard.policies.base import Step
from regard.policies.budget import Budget
from regard.policies.kinds import StoreAndAttend
from regard.policies.registry import register
from regard.run.counting import count


@register("remote_attention")
@method(
    "lamina_attention_offloading",
    call='from regard.policies import policy; policy("remote_attention", processes=2)',
)
@dataclass
class RemoteAttention(StoreAndAttend):
    """Compute attention in worker processes, each of which keeps the keys of some heads.

    The process of the model sends q, then k and v, and receives the outputs of the heads; a worker
    attends to the keys it has while the new ones are in transit, and merges the results:
    `o = merge(partial(q, K, V), partial(q, k, v))`. Results are exact, and the process of the model
    keeps no keys. Pass `workers` that are running, or have `processes` of them started.
    (Attention offloading, Chen et al. 2024)
    """

    processes: int = 2
    workers: Any = None

    def begin(self, model: Any, sites: Sites, budget: Budget) -> None:
        """Start the workers."""
        super().begin(model, sites, budget)
        self._ours: Any = self.workers or AttentionWorkers(self.processes)

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Keep keys in the workers."""
        made: KeyMemory = self._ours.remote()
        return made

    def attend(self, step: Step) -> Tensor | None:
        """Compute attention in the workers."""
        from regard.policies.without_padding import without_padding

        if step.layer is None or not isinstance(step.memory, Remote):
            return None
        call = step.call
        # Workers count in their own processes: what they compute is derived from the shapes.
        pairs = call.n * (step.seen - call.n) + call.n * (call.n + 1) / 2
        count(call.b * call.h * pairs, call.d + call.e, 0.0)
        out: Tensor = step.memory.attend(call.q, without_padding(call.rule))
        return out

    def end(self) -> None:
        """Stop the workers that were started here."""
        super().end()
        if self.workers is None:
            self._ours.close()
