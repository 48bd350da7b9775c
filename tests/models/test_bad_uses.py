"""What is asked wrongly is told clearly, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import regard  # noqa: E402
from regard.models import Edit, Engine, Null, Site, Stage, UnsupportedModelError, attach  # noqa: E402
from regard.models.versions import supported  # noqa: E402
from tests.architectures import DECODERS, REFUSED, build  # noqa: E402

IDS = torch.arange(5, 14)[None]


def llama() -> Any:
    return build("llama", DECODERS["llama"], causal=True)


class Returns(Stage):
    """Returns what it is told to."""

    def __init__(self, step: str, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.step, self.make = step, make

    def before(self, call: Any) -> Any:
        return self.make(call) if self.step == "before" else call

    def after(self, call: Any, partial: Any) -> Any:
        return self.make(partial) if self.step == "after" else partial


class NoWhere(Stage):
    """Forgets to call super().__init__."""

    def __init__(self) -> None:
        pass


class Wants(Stage):
    """Wants something that no survey knows."""

    want = ("moonlight",)


def _far(partial: Any) -> Any:
    return partial._replace(out=partial.out[:, :, :1])


WHERES: list[Any] = [
    9,
    [7, 8],
    range(50, 60),
    "nothing.*",
    "cross",
    "joint",
    {"layers": 9},
    {"layers": -1},
    {"layers": "all"},
    {"kinds": "sideways"},
    {"kinds": 3},
    {"names": 3},
    {"heads": 9},
    {"heads": [0, 4]},
    {"heads": True},
    {"heads": -1},
    {"colour": 1},
    {"steps": "late"},
    1.5,
    -1,
    lambda site: False,
]
RETURNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("before", lambda c: None),
    ("before", lambda c: c.q),
    ("before", lambda c: c.replace(q=c.q[:, :2])),
    ("before", lambda c: c.replace(q=c.q[:, :, :1])),
    ("before", lambda c: c.replace(q=c.q.double())),
    ("before", lambda c: c.replace(k=c.k[:, :, :1])),
    ("before", lambda c: c.replace(k=c.k[..., :2])),
    ("before", lambda c: c.replace(v=c.v[..., :2])),
    ("before", lambda c: c.replace(q=None)),
    ("after", lambda p: None),
    ("after", lambda p: p.out),
    ("after", _far),
    ("after", lambda p: p._replace(out=p.out.double())),
    ("after", lambda p: p._replace(out=None)),
]
USES: dict[str, Callable[[], Any]] = {
    **{
        ("where is a function" if callable(w) else f"where={w!r}"[:40]): (
            lambda w=w: attach(llama(), [Null(where=w)])
        )
        for w in WHERES
    },
    "stages is a class": lambda: attach(llama(), [Null]),
    "stages is a word": lambda: attach(llama(), "duo"),
    "stages is a number": lambda: attach(llama(), 3),
    "a stage that forgot super": lambda: attach(llama(), [NoWhere()]),
    "edit of nothing": lambda: Edit("soul", lambda x: x),
    "edit by no function": lambda: Edit("out", 3),
    "kind of site": lambda: Site(0, "sideways"),
    "model is a number": lambda: attach(3),
    "model is a name": lambda: attach("gpt2"),
    "model without attention": lambda: attach(torch.nn.Linear(2, 2)),
    "estimate of nothing": lambda: regard.estimate(llama(), 0),
    "estimate of a half": lambda: regard.estimate(llama(), 0.5),
    "engine of a word": lambda: Engine(["a"]),
}


@pytest.mark.parametrize("use", USES)
def test_a_bad_use_is_told(use: str) -> None:
    with pytest.raises(regard.RegardError, match="To put it right"):
        USES[use]()


@pytest.mark.parametrize("case", range(len(RETURNS)))
def test_what_a_stage_returns_is_looked_at(case: int) -> None:
    model, (step, make) = llama(), RETURNS[case]
    plain = model(IDS).logits
    told = pytest.raises(regard.RegardError, match="To put it right")
    with told, attach(model, [Returns(step, make)], check=False):
        model(IDS)
    assert torch.equal(model(IDS).logits, plain)


def test_an_unknown_statistic_is_told() -> None:
    model = llama()
    with pytest.raises(regard.RegardError), attach(model, [Wants()], check=False):
        model(IDS)


def test_weights_of_long_inputs_are_refused_with_their_size() -> None:
    model = llama()
    edit = Edit("prob", lambda x: x)
    long = torch.randint(5, 60, (40, 400))
    with pytest.raises(regard.RegardError, match="MiB"), attach(model, [edit], check=False):
        model(long)


@pytest.mark.parametrize("name", REFUSED)
def test_attention_out_of_reach_is_named(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"attends in .*Attention"):
        attach(build(name, REFUSED[name]))


def test_a_wrong_version_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", "4.44.2")
    with pytest.raises(regard.VersionError, match="transformers>=5"):
        supported("transformers", transformers)
