"""One wrapper notes a forward; no hook of PyTorch, no attribute on a tensor; caches in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import regard  # noqa: E402
from regard.models import Edit, Null, Stage, attach, current_forward  # noqa: E402
from regard.models.wrap import Wrapped  # noqa: E402
from tests.architectures import DECODERS, build  # noqa: E402

IDS = torch.arange(5, 14)[None]


class Notes(Stage):
    """Keeps the record of each forward, and what is hung on the keys of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: list[Any] = []
        self.caches: list[Any] = []
        self.hung: list[dict[str, Any]] = []

    def before(self, call: Any) -> Any:
        assert call.forward is current_forward()
        if not self.forwards or self.forwards[-1] is not call.forward:
            self.forwards.append(call.forward)
            self.caches.append(type(call.forward.cache).__name__)
        self.hung += [vars(x) for x in (call.q, call.k, call.v)]
        return call


def test_stages_of_every_kind_share_one_wrapper() -> None:
    model, notes = build("llama", DECODERS["llama"], causal=True), Notes()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with (
        regard.shrink(model, "streaming", keep=4),
        attach(model, [Null(), notes, Edit("out", lambda o: o)], check=False),
    ):
        model.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
        after = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        assert after == hooks
        wrapped = [m for m in model.modules() if isinstance(vars(m).get("forward"), Wrapped)]
        assert wrapped == [model]
    assert [now.step for now in notes.forwards] == [0, 1, 2]
    assert notes.caches == ["DynamicCache"] * 3
    assert not any(notes.hung)


def test_the_record_says_what_is_padding() -> None:
    model, notes = build("llama", DECODERS["llama"], causal=True), Notes()
    real = torch.ones(2, 9, dtype=torch.long)
    real[0, :3] = 0
    with attach(model, [notes], check=False):
        model(IDS.repeat(2, 1), attention_mask=real)
    assert torch.equal(notes.forwards[0].padding, real)


def test_a_record_keeps_no_cache_alive() -> None:
    model, notes = build("llama", DECODERS["llama"], causal=True), Notes()
    with attach(model, [notes], check=False):
        model.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert notes.caches[0] == "DynamicCache"
    assert notes.forwards[0].cache is None


def test_types_of_caches_are_known_in_one_file() -> None:
    folder = Path(regard.__file__).parent / "models"
    knowing = [f.name for f in folder.glob("*.py") if "CacheLayerMixin" in f.read_text("utf-8")]
    assert knowing == ["cache.py"]
