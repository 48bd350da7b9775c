"""Decoding whose attention is done by other processes, where the keys are."""

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
    """Let processes beside the model keep the keys of some heads each, and attend to them.

    The model's process sends q, then k and v, and gets the heads' outputs; a worker looks at the
    keys that it has while the new ones are on their way, and merges:
    `o = merge(partial(q, K, V), partial(q, k, v))`. Nothing is lost, and the process of the model
    keeps no keys. Give `workers` that run already, or let `processes` of them be started.
    (Attention offloading, Chen et al. 2024)
    """

    processes: int = 2
    workers: Any = None

    def begin(self, model: Any, sites: Sites, budget: Budget) -> None:
        """Start the workers."""
        super().begin(model, sites, budget)
        self._ours: Any = self.workers or AttentionWorkers(self.processes)

    def memory(self, site: Site, before: Sequence[KeyMemory]) -> KeyMemory | None:
        """Keep keys there."""
        made: KeyMemory = self._ours.remote()
        return made

    def attend(self, step: Step) -> Tensor | None:
        """Ask the workers."""
        from regard.policies.without_padding import without_padding

        if step.layer is None or not isinstance(step.memory, Remote):
            return None
        call = step.call
        # Workers count in processes of their own: what they compute is told by the shapes.
        pairs = call.n * (step.seen - call.n) + call.n * (call.n + 1) / 2
        count(call.b * call.h * pairs, call.d + call.e, 0.0)
        out: Tensor = step.memory.attend(call.q, without_padding(call.rule))
        return out

    def end(self) -> None:
        """Stop the workers that were started here."""
        super().end()
        if self.workers is None:
            self._ours.close()
