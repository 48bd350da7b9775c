"""Where Regard steps into vLLM: its registry of backends, its model runner and its scheduler.

Backends are told what to compute, and not for whom. So the runner is asked for its requests before
each step, a request that failed is ended by the scheduler, and one to be surveyed reads no prefix
from the cache. All of it happens only in a server that was started with `REGARD` set.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from regard.core.errors import CapabilityError, RegardError, ValueRangeError, fail
from regard.models.site import Site, Sites
from regard.run.plan import EXECUTORS
from regard.serving.vllm.cache_layout import ServerPages
from regard.serving.vllm.cpu_kernel import KERNEL, CpuKernel
from regard.serving.vllm.policy_bytes import METHOD
from regard.serving.vllm.served_requests import Served, Serving, Setup
from regard.serving.vllm.server_settings import EXTRAS, Asked, Settings

CPU, CUSTOM = "CPU_ATTN", "CUSTOM"
_HOME, _CPU = "regard.serving.vllm.backend", "regard.serving.vllm.cpu_backend"


class Server(Serving):
    """What is served, as vLLM's model runner tells it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._batch: list[Served] = []
        # Requests of the scheduler that decline a policy; they go when they are done.
        self.declined: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._sites: dict[str, Site] = {}
        self.known = False

    def start(self, runner: Any) -> None:
        """Find the layers of a runner's model, and get ready for it."""
        config, model = runner.vllm_config, runner.model_config
        layers = {
            name: layer
            for name, layer in runner.compilation_config.static_forward_context.items()
            if getattr(getattr(layer, "impl", None), "rules", None) is not None
        }
        self._sites = {
            name: _site(number, name, x) for number, (name, x) in enumerate(layers.items())
        }
        batch, scheduler = config.scheduler_config, config.cache_config
        chunks = bool(
            batch.enable_chunked_prefill or batch.max_num_batched_tokens < model.max_model_len
        )
        setup = Setup(
            chunks, bool(scheduler.enable_prefix_caching), config.speculative_config is not None,
            str(model.model), str(model.dtype),
            _tokenizer(model) if self.settings.see or self.settings.steer else None,
            config.parallel_config.tensor_parallel_size,
        )  # fmt: skip
        self.known = True
        self.begin(runner.get_model(), Sites(self._sites.values()), setup)

    def site_of(self, layer: str) -> Site | None:
        """Return the site of a layer by vLLM's name for it."""
        return self._sites.get(layer)

    def note(self, runner: Any) -> None:
        """Record who is in the batch that comes next."""
        if not self.by_request:
            return
        found = []
        for name in runner.input_batch.req_ids:
            state = runner.requests[name]
            served = self.requests.get(name)
            if served is None:
                params = state.sampling_params
                extra = None if params is None else params.extra_args
                served = self.arrive(name, extra, state.prompt_token_ids)
            found.append(served)
        self._batch = found

    def rows(self, count: int) -> list[Served | None]:
        """Return whose the rows of a batch are; nobody's where vLLM only tries the model."""
        if self.by_request and not self.known:
            fail(
                CapabilityError, "REGARD", "a model runner that does not tell of its requests",
                "vLLM's first model runner", "set VLLM_USE_V2_MODEL_RUNNER=0",
            )  # fmt: skip
        if len(self._batch) != count:
            return [None] * count
        return list(self._batch)


_servers: list[Server] = []


def current() -> Server:
    """Return the server of this process."""
    if not _servers:
        fail(
            CapabilityError, "REGARD", "a backend that was asked for by name alone",
            "REGARD to be set", "start vLLM with REGARD=on, or with another backend",
        )  # fmt: skip
    return _servers[-1]


def install(settings: Settings) -> None:
    """Register the backends, and step into runner and scheduler; once for each process."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    _servers[:] = [Server(settings)]
    EXECUTORS.add(ServerPages.form, KERNEL, CpuKernel.__module__, CpuKernel.__name__)
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{_CPU}.RegardCpuBackend")
    register_backend(AttentionBackendEnum.CUSTOM, f"{_HOME}.RegardBackend")
    # The second runner of vLLM does not tell of its requests.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if current().by_request:
        _step_in()
    if settings.shrink is not None:
        _refuse_beams()
        _tell_bytes()


def _step_in() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _around(GPUModelRunner, "initialize_kv_cache", _started)
    _around(GPUModelRunner, "_build_attention_metadata", _batch)
    _around(GPUModelRunner, "_on_request_state_removed", _left)
    _around(GPUModelRunner, "sample_tokens", _sampled)
    _around(Scheduler, "add_request", _added)
    _around(Scheduler, "update_from_output", _updated)
    _around(FullAttentionManager, "remove_skipped_blocks", _skipped)


def _refuse_beams() -> None:
    """Each beam is asked anew as a prompt, to which policies that select do not apply."""
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    for kind in (BeamSearchOfflineMixin, BeamSearchOnlineMixin):
        _around(kind, "beam_search", _beams)


def _tell_bytes() -> None:
    """Let the process that speaks HTTP ask a worker what its policies keep."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, METHOD, lambda worker: current().policy_bytes)


def _beams(plain: Any, server: Any, *args: Any, **kwargs: Any) -> Any:
    if current().settings.shrink is None:
        return plain(server, *args, **kwargs)
    fail(
        ValueRangeError, "beam search", "beams, which vLLM asks for as a new prompt at each token",
        "requests that decode, as a policy chooses keys for single tokens",
        "sample several answers with n, or serve without shrink",
    )  # fmt: skip


def _around(kind: type[Any], name: str, ours: Callable[..., Any]) -> None:
    plain = getattr(kind, name)
    if getattr(plain, "of_regard", False):
        return

    @functools.wraps(plain)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(plain, self, *args, **kwargs)

    method.of_regard = True  # type: ignore[attr-defined]
    setattr(kind, name, method)


def _started(plain: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    found = plain(runner, *args, **kwargs)
    if not current().known:
        current().start(runner)
    return found


def _batch(plain: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    current().note(runner)
    return plain(runner, *args, **kwargs)


def _left(plain: Any, runner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    current().leave(name)
    return plain(runner, name, *args, **kwargs)


def _sampled(plain: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    made = plain(runner, *args, **kwargs)
    failed = current().failures()
    if failed:
        # An output that comes later holds the one that goes to the scheduler.
        getattr(made, "_model_runner_output", made).regard_failed = failed
    return made


def _added(plain: Any, scheduler: Any, request: Any) -> Any:
    params = request.sampling_params
    extra = (None if params is None else params.extra_args) or {}
    try:
        asked = Asked.of({x: extra[x] for x in EXTRAS if x in extra})
    except RegardError:  # which ends the request when it is served
        asked = Asked(shrink=False)
    if asked.see or asked.steer:
        request.skip_reading_prefix_cache = True
    if asked.steer:  # its keys are like those of no other request
        request.cache_salt = f"regard {request.request_id}"
        request.block_hashes.clear()
        request.update_block_hashes()
    if not asked.shrink:
        current().declined[request.request_id] = request
    return plain(scheduler, request)


def _skipped(plain: Any, manager: Any, name: str, done: int, prompt: int | None = None) -> None:
    """Free the blocks of a request that no later token will read, at any layer or head."""
    plain(manager, name, done, prompt)
    kept = current().kept()
    if kept is None or prompt is None or done <= prompt or name in current().declined:
        return
    first, newest = kept
    # The token that comes next is one of the newest.
    begin, end = -(-first // manager.block_size), (done + 1 - newest) // manager.block_size
    manager._remove_blocks_in_range(name, begin, end)


def _updated(plain: Any, scheduler: Any, planned: Any, output: Any) -> Any:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.request import RequestStatus

    failed: dict[str, str] = getattr(output, "regard_failed", {})
    names = [x for x in failed if x in scheduler.requests]
    ended = scheduler.finish_requests(names, RequestStatus.FINISHED_ERROR) if names else []
    made = plain(scheduler, planned, output)
    for request in ended:
        one = EngineCoreOutput(
            request.request_id, [], finish_reason=request.get_finished_reason(),
            stop_reason=failed[request.request_id],
        )  # fmt: skip
        made.setdefault(request.client_index, EngineCoreOutputs(outputs=[])).outputs.append(one)
    return made


def _site(number: int, name: str, layer: Any) -> Site:
    """Name a layer as in transformers: the module that attends, not what it calls."""
    return Site(
        number, "self", name.removesuffix(".attn"), layer.num_heads, layer.num_kv_heads,
        layer.head_size, causal=True,
    )  # fmt: skip


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.tokenizer)
    except Exception:  # a model without one is served by ids, and surveyed by ids
        return None
