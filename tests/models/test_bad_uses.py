"""What is asked wrongly is told clearly, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import regard  # noqa: E402
from regard.models import Edit, Engine, Null, Site, Stage, UnsupportedModelError, attach  # noqa: E402
from regard.models.diffusers import branches  # noqa: E402
from regard.models.forward import Forward  # noqa: E402
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


QUERY = torch.randn(1, 2, 5, 8)


class ByHand(torch.nn.Module):
    """Calls PyTorch's attention on what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


class ByItself(torch.nn.Module):
    """Attends without any call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.mT).softmax(-1) @ x


def run_by_hand(x: torch.Tensor) -> Any:
    model = ByHand()
    with attach(model, [Null()]):
        return model(x)


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
    "estimate of no batch": lambda: regard.estimate(llama(), 8, batch=0),
    "estimate of an unknown statistic": lambda: regard.estimate(llama(), 8, ("moonlight",)),
    "steps that are halves": lambda: attach(llama(), [Null(where={"steps": 1.5})]),
    "steps before the first": lambda: attach(llama(), [Null(where={"steps": [-1]})]),
    "rows of a branch not told": lambda: Forward(0).rows("conditional", 2),
    "rows that do not divide": lambda: Forward(0, branches=("a", "b")).rows("a", 3),
    "no branches": branches,
    "one branch twice": lambda: branches("a", "a"),
    "nested tensors": lambda: run_by_hand(torch.nested.nested_tensor([QUERY[0], QUERY[0]])),
    "one axis": lambda: run_by_hand(QUERY[0, 0, 0]),
    "a module that softmaxes by itself": lambda: attach(ByItself()),
}


def test_more_than_forty_bad_uses_are_told() -> None:
    """Those below are told apart by what is said of them."""
    said = set()
    for use in USES.values():
        with pytest.raises(regard.RegardError) as told:
            use()
        said.add(str(told.value))
    assert len(said) >= 40


@pytest.mark.parametrize("use", USES)
def test_a_bad_use_is_told(use: str) -> None:
    with pytest.raises(regard.RegardError, match="Fix"):
        USES[use]()


@pytest.mark.parametrize("case", range(len(RETURNS)))
def test_what_a_stage_returns_is_looked_at(case: int) -> None:
    model, (step, make) = llama(), RETURNS[case]
    plain = model(IDS).logits
    told = pytest.raises(regard.RegardError, match="Fix")
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


def test_weights_that_transformers_leaves_out_are_given() -> None:
    """Asked for weights under sdpa, transformers answers with an empty tuple."""
    model = llama()
    model.set_attn_implementation("sdpa")
    assert not model(IDS, output_attentions=True).attentions
    with attach(model, [Null()]):
        weights = model(IDS, output_attentions=True).attentions
    assert len(weights) == model.config.num_hidden_layers
    for w in weights:
        torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1]))
        assert not w.triu(1).any()
    long = torch.randint(5, 60, (40, 400))
    with pytest.raises(regard.RegardError, match=r"output_attentions.*MiB"), attach(model):
        model(long, output_attentions=True)


@pytest.mark.parametrize("name", REFUSED)
def test_attention_out_of_reach_is_named(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"attends in .*Attention"):
        attach(build(name, REFUSED[name]))


def test_a_wrong_version_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", "4.44.2")
    with pytest.raises(regard.VersionError, match="transformers>=5"):
        supported("transformers", transformers)
