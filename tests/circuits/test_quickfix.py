"""Tracing finds the part that carries; the closed form edits what it is told to, and no more."""

import pytest
import torch
from torch import nn

from regard.circuits.quickfix import QuickFix, corrupting, rewritten, trace
from regard.core.errors import RuleError, ShapeError, ValueRangeError


def test_the_edit_is_the_least_squares_solution(seed):
    w, k, v = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3, 5)
    for strength in (1e-3, 0.1, 10.0):
        found = rewritten(w, k, v, strength).double()
        w2, k2, v2 = w.double(), k.double(), v.double()
        left = v2.T @ k2 + strength * w2
        wanted = left @ torch.linalg.inv(k2.T @ k2 + strength * torch.eye(7))
        assert found.allclose(wanted, atol=1e-5)
    # The gradient of what is minimized is zero there.
    free = rewritten(w.double(), k.double(), v.double(), 0.1).requires_grad_()
    loss = (k.double() @ free.T - v).square().sum() + 0.1 * (free - w).square().sum()
    (slope,) = torch.autograd.grad(loss, free)
    assert float(slope.abs().max()) < 1e-9


def test_what_is_orthogonal_to_the_edit_is_as_it_was(seed):
    w, k, v = torch.randn(5, 7).double(), torch.randn(2, 7).double(), torch.randn(2, 5).double()
    found = rewritten(w, k, v, 1e-8)
    assert (k @ found.T).allclose(v, atol=1e-6)
    apart = torch.linalg.svd(k).Vh[2:]  # directions orthogonal to both
    assert (apart @ found.T).allclose(apart @ w.T, atol=1e-12)
    assert rewritten(w, k, v, 1e12).allclose(w, atol=1e-9)


class Paths(nn.Module):
    """Three paths of one kind from the embedding; only the second reaches the output."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.paths = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(24, 1)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.weight[:, 8:16] = 1.0

    def forward(self, ids):
        x = self.embedding(ids)
        return self.out(torch.cat([path(x) for path in self.paths], -1))


def test_tracing_ranks_the_planted_path_first(seed):
    model, ids = Paths(), torch.tensor([[1, 2, 3, 4]])
    parts = {f"paths.{i}": path for i, path in enumerate(model.paths)}

    def clean():
        return model(ids)

    def corrupted():
        with corrupting(model.embedding, [2], 3.0, seed=seed):
            return model(ids)

    with torch.no_grad():
        wanted = clean()[0, 2]
        effects = trace(parts, clean, corrupted, lambda y: -(y[0, 2] - wanted).abs())
        elsewhere = trace(
            parts, clean, corrupted, lambda y: -(y[0, 2] - wanted).abs(), positions=[1]
        )
        assert torch.equal(clean()[0, :2], corrupted()[0, :2])
    assert effects.top(1)[0][0] == "paths.1"
    assert effects.restored["paths.1"] == pytest.approx(effects.clean, abs=1e-6)
    assert effects.indirect()["paths.0"] == 0
    assert set(elsewhere.indirect().values()) == {0}
    assert not any(m._forward_hooks for m in model.modules())


def test_an_attribute_is_moved_in_a_text_encoder(seed):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.CLIPTextModel(config).eval()
    layers = [m for n, m in model.named_modules() if n.endswith("layers.0.self_attn.out_proj")]

    def run(color):
        ids = torch.tensor([[0, 5, color, 9, 1]])
        return lambda: model(input_ids=ids).last_hidden_state

    plain = [run(color)() for color in (3, 4, 6)]
    with QuickFix(layers[0], [(run(3), 3)], [(run(4), 3)], 1e-6) as fix, torch.no_grad():
        gave = fix.inputs @ layers[0].weight.T + layers[0].bias
        assert gave.allclose(fix.wanted, atol=1e-4)
        assert not run(3)().allclose(plain[0], atol=1e-6)
    for color, was in zip((3, 4, 6), plain, strict=True):
        assert torch.equal(run(color)(), was)


def test_bad_questions_are_answered_clearly(seed):
    layer = nn.Linear(3, 2)
    x = torch.randn(1, 4, 3)
    with pytest.raises(ShapeError, match=r"\[c, 3\] and \[c, 2\]"):
        rewritten(layer.weight, torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueRangeError, match="strength"):
        rewritten(layer.weight, torch.ones(1, 3), torch.ones(1, 2), 0.0)
    with pytest.raises(RuleError, match="as many of each"):
        QuickFix(layer, [(lambda: layer(x), 0)], [])
    with pytest.raises(RuleError, match="does not reach it"):
        QuickFix(layer, [(lambda: None, 0)], [(lambda: None, 0)])
    with pytest.raises(RuleError, match="a Linear"):
        QuickFix(nn.ReLU(), [], [])

    def longer():
        return layer(torch.randn(1, 5, 3))

    with pytest.raises(ShapeError, match="the clean run"):
        trace({"layer": layer}, lambda: layer(x), longer, lambda y: y.detach().sum())
