"""What vLLM calls in every process when it starts."""

from __future__ import annotations

import os

from regard.serving.vllm.server_settings import VARIABLE, Settings


def register() -> None:
    """Put Regard's attention in place of vLLM's, if `REGARD` asks for it; else do nothing."""
    settings = Settings.of(os.environ.get(VARIABLE, ""))
    if settings.on:
        from regard.serving.vllm.hooks import install  # loads vLLM's workers

        install(settings)
