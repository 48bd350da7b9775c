"""What policies keep beside the blocks of a vLLM server, as a gauge beside those of vLLM.

vLLM's own gauge of its cache counts blocks. What a policy keeps of a request beside them (bounds of
pages, say) lives in the processes that attend, and the gauge is asked for where HTTP is spoken: the
workers are asked when `/metrics` is read, and at no other time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

# The method of a worker that tells.
METHOD = "regard_policy_bytes"
# Seconds that a reader of the metrics waits for the workers; they answer between two steps.
PATIENCE = 5.0


class PolicyBytes:
    """The gauge `regard_policy_bytes`: bytes beside the blocks, of all requests and workers."""

    def __init__(self) -> None:
        self.engine: Any = None
        # None where the workers have not told, or not in time.
        self.bytes: int | None = None

    async def ask(self) -> None:
        """Ask every worker; where one has died there is no number, and other gauges stay."""
        self.bytes = None
        if self.engine is None:
            return
        try:
            asked = self.engine.collective_rpc(METHOD)
            self.bytes = sum(await asyncio.wait_for(asked, PATIENCE))
        except Exception:  # of whatever kind: vLLM itself reports a worker that died
            return

    def collect(self) -> Iterator[Any]:
        """Yield the gauge."""
        from prometheus_client.core import GaugeMetricFamily

        said = "Bytes that policies keep of requests beside the blocks of the cache"
        made = GaugeMetricFamily(METHOD, said)
        if self.bytes is not None:
            made.add_metric([], float(self.bytes))
        yield made


class AskFirst:
    """A layer of an ASGI app that waits for `ask` before `/metrics` is answered."""

    def __init__(self, app: Callable[..., Awaitable[None]], ask: Callable[[], Awaitable[None]]):
        self.app, self.ask = app, ask

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on."""
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/metrics":
            await self.ask()
        await self.app(scope, receive, send)
