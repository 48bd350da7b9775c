"""Continuous batching of transformers, with policies, surveys and controls by request.

`generate_batch` of transformers packs the tokens of many requests in one row, over a paged cache.
Here each request of such a row is a separate call with the policies, surveys and controls it asked
for, as inside vLLM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ShapeError, fail
from regard.core.key_forms import Paged
from regard.models.attach import hook_of
from regard.models.site import Site
from regard.serving.vllm.layer_rules import LayerRules
from regard.serving.vllm.server_settings import Settings

if TYPE_CHECKING:  # policies and views, which not every server needs
    from regard.serving.vllm.served_requests import Served

IMPLEMENTATION = "sdpa"
# Tokens per batch, by default.
MOST_TOKENS = 512


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    regard: str = "on",
    asked: Sequence[Mapping[str, Any] | None] | None = None,
    tokenizer: Any = None,
    **settings: Any,
) -> list[Any]:
    """Generate for many prompts (lists of ids) by the continuous batching of transformers.

    `regard` has the syntax of the environment variable `REGARD` for vLLM, and `asked` the extra
    arguments of each request: `{"regard_see": True}`. `settings` go to `model.generate_batch`;
    unless `continuous_batching_config` is among them, there is room for all requests at once.
    Returns the answers in the order of the prompts; one that Regard could not serve has an `error`.

        answers = generate_batch(model, prompts, "shrink quest keep=25%", max_new_tokens=32)
    """
    from regard.serving.vllm.paged_policies import needs_whole_prompt, paged_policy

    asked = [None] * len(prompts) if asked is None else list(asked)
    if len(asked) != len(prompts):
        fail(ShapeError, "asked", len(asked), f"{len(prompts)}, one a prompt", "pass None for none")
    said = Settings.of(regard)
    if not said.on or not prompts:
        return list(model.generate_batch([list(x) for x in prompts], **settings).values())
    if said.shrink is not None and (why := needs_whole_prompt(paged_policy(said.shrink))):
        fail(
            CapabilityError, f"policy {said.shrink.policy!r}", f"one that {why}",
            "prompts that may be split into chunks, as in continuous batching",
            "take quest, recycled or streaming; or call generate with regard.shrink",
        )  # fmt: skip
    batching = _Batching(model, said, prompts, asked, tokenizer)
    with batching.serving_model():
        found = model.generate_batch(
            [list(x) for x in prompts], **{**settings, **batching.configured(settings)}
        )
    return batching.told(list(found.values()))


class _Batching:
    """One run: the requests in the next batch, and the calls of its rows."""

    def __init__(
        self, model: Any, said: Settings, prompts: Sequence[Sequence[int]],
        asked: Sequence[Mapping[str, Any] | None], tokenizer: Any,
    ) -> None:  # fmt: skip
        from regard.serving.vllm.served_requests import Serving, Setup

        self.model, self.prompts, self.asked = model, prompts, asked
        hook, sites = hook_of(model)
        name = getattr(model.config, "_attn_implementation", None)
        if hook.name != "transformers" or name != IMPLEMENTATION:
            fail(
                CapabilityError, "model", f"{type(model).__name__}, whose attention is {name!r}",
                f"a model of transformers that attends by {IMPLEMENTATION!r}, with no stages "
                "attached", f"load it with attn_implementation={IMPLEMENTATION!r}, or detach",
            )  # fmt: skip
        self.sites: dict[nn.Module, Site] = {model.get_submodule(x.module): x for x in sites}
        self.first = next(iter(self.sites))
        self.rules: dict[nn.Module, LayerRules] = {}
        self.serving = Serving(said)
        config = model.config
        about = str(getattr(config, "name_or_path", "") or type(model).__name__)
        self.serving.begin(model, sites, Setup(name=about, dtype=str(model.dtype),
                                               tokenizer=tokenizer))  # fmt: skip
        # Batches that were prepared, with their requests; the oldest is next.
        self.prepared: deque[list[Served]] = deque()
        self.now: list[Served] = []

    def configured(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of the batching: requests share no prefixes, since one may be changed."""
        from transformers import ContinuousBatchingConfig

        config = settings.get("continuous_batching_config")
        if config is None:
            config = ContinuousBatchingConfig(max_batch_tokens=MOST_TOKENS)
            # Room for all requests at once; transformers would take most of the memory.
            page: int = getattr(config, "page_size", None) or config.block_size or 1
            usual = self.model.generation_config.max_new_tokens
            new = int(settings.get("max_new_tokens") or usual or 20)
            config.num_blocks = sum(2 + (len(x) + new) // page for x in self.prompts)
        config.allow_block_sharing = False
        config.auto_switch_to_flash = False
        config.use_async_batching = False
        generation = settings.get("generation_config") or self.model.generation_config
        if (getattr(generation, "num_return_sequences", None) or 1) > 1:
            fail(
                CapabilityError, "num_return_sequences", generation.num_return_sequences, "1",
                "pass a prompt as many times as you want answers",
            )  # fmt: skip
        return {"continuous_batching_config": config}

    @contextmanager
    def serving_model(self) -> Iterator[None]:
        """Replace attention in transformers, for this model only, and record its batches."""
        from transformers import AttentionInterface
        from transformers.generation.continuous_batching.input_outputs import (
            ContinuousBatchingIOs as Batches,
        )
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        plain, prepare = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION], Batches.prepare_batch_tensors

        def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module not in self.sites or kwargs.get("cache") is None:
                return plain(module, *args, **kwargs)
            return self.attend(module, *args, **kwargs)

        def prepared(one: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(one, "config", None) is self.model.config:
                requests = kwargs.get("requests_in_batch") or args[0]
                self.prepared.append([self.arrive(x.state) for x in requests])
            return prepare(one, *args, **kwargs)

        AttentionInterface.register(IMPLEMENTATION, attention)
        # Restored below; transformers exposes the requests of a batch nowhere else.
        Batches.prepare_batch_tensors = prepared  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            AttentionInterface.register(IMPLEMENTATION, plain)
            Batches.prepare_batch_tensors = prepare  # type: ignore[method-assign]

    def arrive(self, state: Any) -> Served:
        """Record a request, which transformers identifies by number."""
        name = state.request_id
        number = int(name.partition("_")[2])
        return self.serving.arrive(name, self.asked[number], list(self.prompts[number]))

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any,
        dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None,
        cache: Any = None, softcap: float | None = None, s_aux: Tensor | None = None,
        sliding_window: int | None = None, position_bias: Any = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Attend for each request of a row: query [1, h, n, d] to out [1, n, h, d]."""
        if module is self.first:
            self.now = self.prepared.popleft() if self.prepared else []
        site = self.sites[module]
        key, value = cache.update(
            key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs
        )
        if sliding_window is not None or position_bias is not None:
            fail(
                CapabilityError, "model", f"windows or biases of positions at {site.module}",
                "layers that keep all keys of a request", "serve it without Regard",
            )  # fmt: skip
        rules = self.rules.get(module)
        if rules is None:
            rules = self.rules[module] = LayerRules(
                query.shape[3] ** -0.5 if scaling is None else float(scaling), None, softcap,
                sinks=s_aux,
            )  # fmt: skip
        ends, key_ends = (kwargs[x].tolist() for x in ("cu_seq_lens_q", "cu_seq_lens_k"))
        if len(self.now) > len(ends) - 1:
            fail(
                RuleError, "batch", f"{len(ends) - 1} rows for {len(self.now)} requests",
                "a row for each", "report it, with the version of transformers",
            )  # fmt: skip
        out = torch.zeros_like(query)
        for i, served in enumerate(self.now):
            at, keys = slice(ends[i], ends[i + 1]), slice(key_ends[i], key_ends[i + 1])
            m, n = keys.stop - keys.start, at.stop - at.start
            table, length = (torch.tensor(x, device=key.device) for x in ([[[0]]], [[m]]))
            pages = Paged(key[:, :, keys], value[:, :, keys], table, length, longest=m)
            call = Call(query[:, :, at], pages, rules.of(n, m), site=site)
            out[:, :, at] = self.serving.attend(call, served, rules)
        return out.transpose(1, 2).contiguous(), None

    def told(self, answers: list[Any]) -> list[Any]:
        """Return the answers, those of requests that failed with their error; forget requests."""
        failed = self.serving.failures()
        for one in answers:
            one.error = failed.get(one.request_id, one.error)
        for name in list(self.serving.requests):
            self.serving.leave(name)
        return answers
