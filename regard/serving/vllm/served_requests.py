"""Who is being served: requests by their ids, what each asked for, and the road of their calls."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail
from regard.core.key_forms import Paged
from regard.models.engine import Engine
from regard.models.site import Site, Sites
from regard.policies.budget import Budget
from regard.policies.kinds import Prefill, Select
from regard.run.executor import No
from regard.serving.vllm.layer_rules import LayerRules
from regard.serving.vllm.paged_policies import (
    PagedLayer,
    PagedShrinking,
    SinksAndRecent,
    can_serve,
    paged_policy,
    reads_at_steps,
)
from regard.serving.vllm.request_lookback import RequestLookback
from regard.serving.vllm.request_steering import RequestSteering, check_control
from regard.serving.vllm.request_survey import RequestSurvey
from regard.serving.vllm.server_settings import Asked, Settings

log = logging.getLogger("vllm.regard")  # vLLM shows what loggers of its name say
_plain = Engine()


@dataclass
class Served:
    """One request that is being served."""

    name: str
    asked: Asked = field(default_factory=Asked)
    prompt: int = 0
    survey: RequestSurvey | None = None
    # What is seen of the tokens that it generates, if it is surveyed.
    lookback: RequestLookback | None = None
    steering: RequestSteering | None = None
    layers: dict[Site, PagedLayer] = field(default_factory=dict)
    # Why it cannot go on; the server ends it with this.
    failed: str = ""


@dataclass(frozen=True)
class Setup:
    """How a server is set up, as far as policies care."""

    chunks: bool = False
    caches_prefixes: bool = False
    guesses: bool = False
    name: str = "a served model"
    dtype: str = ""
    tokenizer: Any = None
    # Over which the heads of the model are divided.
    processes: int = 1


class Serving:
    """All requests of one process, and the stages that their calls pass.

    >>> serving = Serving(Settings.of("on"))
    >>> serving.begin(None, Sites(), Setup())
    >>> serving.arrive("a", {}, [5, 6, 7]).prompt, serving.requests.keys()
    (3, dict_keys(['a']))
    >>> serving.leave("a"); len(serving.requests)
    0
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.requests: dict[str, Served] = {}
        self.setup = Setup()
        self.sites = Sites()
        self.stage: PagedShrinking | None = None
        self._engine = _plain
        self._policy = None if settings.shrink is None else paged_policy(settings.shrink)
        self.model: Any = None
        if settings.steer is not None:
            check_control(settings.steer)
        # Run files that were written, the newest last.
        self.written: list[Path] = []

    @property
    def by_request(self) -> bool:
        """Whether it matters whose call one is."""
        asked = self.settings
        return any(x is not None for x in (asked.shrink, asked.see, asked.steer))

    @property
    def kernel(self) -> bool:
        """Whether vLLM's own kernel may attend for whoever asks for nothing."""
        return self.settings.kernel

    def asks(self, served: Served | None, n: int, seen: int) -> bool:
        """Return whether a request asks for anything at a step: the newest `n` of `seen` tokens.

        >>> serving = Serving(Settings.of("shrink quest keep=64"))
        >>> one = serving.arrive("a", {}, range(90))
        >>> [serving.asks(one, n, seen) for n, seen in ((90, 90), (1, 91), (1, 60), (1, 90))]
        [False, True, False, False]
        """
        if served is None or served.failed:
            return False
        if served.lookback is not None or served.steering is not None:
            return True
        if self._policy is None or not served.asked.shrink:
            return False
        if reads_at_steps(self._policy):
            if n > 1:  # what was kept of it is of another prompt, if it was preempted
                served.layers.clear()
                return False
            return seen > served.prompt and self._leaves(seen)
        return n > 1 or not isinstance(self._policy, Prefill)

    def _leaves(self, seen: int) -> bool:
        """Return whether the policy reads fewer than `seen` tokens."""
        budget = Budget.of(self._policy.keep) if self._policy is not None else None
        tokens = None if budget is None else budget.tokens
        return tokens is None or seen > tokens

    def begin(self, model: Any, sites: Sites, setup: Setup) -> None:
        """Get ready for a model, or say why it cannot be served as was asked."""
        self.model, self.sites, self.setup, made = model, sites, setup, self._policy
        if setup.processes > 1 and (self.settings.see or self.settings.steer):
            fail(
                CapabilityError, "REGARD", f"see or steer in {setup.processes} processes, each of "
                "which has some of the heads", "one process for a model, or policies alone",
                "leave see and steer out, or serve with --tensor-parallel-size 1",
            )  # fmt: skip
        if made is None:
            return
        answer = can_serve(
            made, chunks=setup.chunks, caches_prefixes=setup.caches_prefixes,
            guesses=setup.guesses,
        )  # fmt: skip
        if isinstance(answer, No):
            fail(
                CapabilityError, f"policy {made.name!r}", answer.reason,
                "a server that is set up for it", "change how the server is started",
            )  # fmt: skip
        stage = PagedShrinking([made], made.keep)
        stage.begin(model, sites)
        self.stage, self._engine = stage, Engine([stage])

    def arrive(self, name: str, extra: Any, tokens: Any) -> Served:
        """Return what is known of a request, which is noted when it is new."""
        found = self.requests.get(name)
        if found is None:
            found = self.requests[name] = Served(name, prompt=len(tokens or ()))
            try:
                found.asked = Asked.of(extra)
                if found.asked.see:
                    found.survey = self._survey(name, list(tokens or ()))
                    found.lookback = RequestLookback(found.prompt)
                if found.asked.steer:
                    found.steering = self._steering(found.asked, list(tokens or ()))
            except Exception as error:
                self._fail(found, error)
        return found

    def leave(self, name: str) -> None:
        """Release all that was kept of a request."""
        one = self.requests.pop(name, None)
        if one is not None and one.lookback is not None and self.settings.see is not None:
            one.lookback.write(self.settings.see.out, name)
        if one is not None and one.steering is not None:
            log.info("regard: request %s was steered: %s", name, one.steering.said)

    @property
    def policy_bytes(self) -> int:
        """Bytes that policies keep of all requests beside the pages of the server."""
        layers = [layer for one in self.requests.values() for layer in one.layers.values()]
        return sum(store.nbytes for layer in layers for store in layer.extra.values())

    def failures(self) -> dict[str, str]:
        """Return why requests cannot go on, by their names."""
        return {x.name: x.failed for x in self.requests.values() if x.failed}

    def kept(self) -> tuple[int, int] | None:
        """Return how many first and newest tokens are read, where a policy reads no others.

        >>> Serving(Settings.of("shrink streaming keep=64 sinks=4")).kept()
        (4, 60)
        """
        one = self._policy
        if not isinstance(one, SinksAndRecent):
            return None
        # Bytes are tokens once the model is known.
        tokens = Budget.of(one.keep).tokens if self.stage is None else one.most
        return None if tokens is None else (one.first, tokens - one.first)

    def attend(self, call: Call, served: Served | None, rules: LayerRules) -> Tensor:
        """Run a call over the pages of one request, past the stages that the request has."""
        if served is None or served.failed or not self.by_request:
            return _plain.run(call)
        try:
            out = self._through(call, served)
            if served.survey is not None:
                self._look(call, served, rules)
            if served.lookback is not None:
                served.lookback.look(call)
        except Exception as error:
            self._fail(served, error)
            return _plain.run(call)
        return out

    def _through(self, call: Call, served: Served) -> Tensor:
        engine, steering = _plain, served.steering
        if steering is not None:
            call, engine = steering.call(call), Engine([steering.stage])
        # The last piece of a prompt may be a single token, which is no step for that.
        piece = call.n == 1 < call.m <= served.prompt and isinstance(self._policy, Select)
        if self.stage is None or not served.asked.shrink or piece:
            return engine.run(call)
        engine = self._engine if steering is None else Engine([self.stage, steering.stage])
        keys = call.keys
        assert isinstance(keys, Paged)
        layer = served.layers.get(call.site)
        if layer is None:
            layer = served.layers[call.site] = PagedLayer()
        layer.arrive(keys, call.n)
        self.stage.serve(layer)
        try:
            return engine.run(call)
        finally:
            self.stage.serve(None)

    def _look(self, call: Call, served: Served, rules: LayerRules) -> None:
        survey, see = served.survey, self.settings.see
        assert survey is not None
        assert see is not None
        n = len(survey.tokens)
        survey.look(call, rules.of(n, n))
        if survey.done:
            self.written.append(survey.write(see.out))
            log.info("regard: request %s was surveyed: %s", served.name, self.written[-1])
            served.survey = None

    def _survey(self, name: str, tokens: list[int]) -> RequestSurvey:
        see = self.settings.see
        if see is None:
            fail(
                CapabilityError, "regard_see", "a request to be surveyed",
                "a server that surveys", "start it with REGARD='see out=FOLDER'",
            )  # fmt: skip
        setup = self.setup
        words = [setup.tokenizer.decode([t]) for t in tokens] if setup.tokenizer else ()
        about = {"name": setup.name, "kind": "served", "dtype": setup.dtype}
        return RequestSurvey(name, tokens, words, self.sites, see.probes, about)

    def _steering(self, asked: Asked, tokens: list[int]) -> RequestSteering:
        steer = self.settings.steer
        if steer is None:
            fail(
                CapabilityError, "regard_steer", "a request to be steered", "a server that steers",
                "start it with REGARD='steer emphasis', say",
            )  # fmt: skip
        return RequestSteering(steer, asked, tokens, self.setup.tokenizer, self.model, self.sites)

    def _fail(self, served: Served, error: Exception) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        served.failed = f"regard: {type(error).__name__}: {error}"
        served.survey, served.lookback, served.steering, served.layers = None, None, None, {}
        log.error(
            "request %s ends: %s (%s:%s)", served.name, served.failed, where.filename, where.lineno
        )
