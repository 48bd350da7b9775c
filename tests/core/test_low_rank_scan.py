"""Laws of scans that pass by a diagonal and a rank-one map."""

import itertools
import math

import pytest
import torch

from regard.core.errors import RegardError
from regard.core.scan import starts
from regard.run.low_rank_scanning import scan_low_rank
from regard.run.scanning import scan

B, H, N, D, E = 2, 2, 23, 4, 3


def drawn(n=N, seed=0, decays=True):
    """Inputs whose memory does not grow: directions of length 1, of which a part is erased."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    right = torch.nn.functional.normalize(normal(B, H, n, D), dim=-1)
    left = -right * normal(B, H, n, D).sigmoid()
    made = {"q": normal(B, H, n, D), "k": normal(B, H, n, D), "v": normal(B, H, n, E),
            "left": left, "right": right}  # fmt: skip
    if decays:
        made["log_decay"] = -normal(B, H, n, D).exp()
    return {name: x.requires_grad_() for name, x in made.items()}


def close(a, b, tolerance=1e-11):
    assert torch.allclose(a, b, atol=tolerance, rtol=tolerance), (a - b).abs().max()


@pytest.mark.parametrize("decays", [True, False])
@pytest.mark.parametrize(("form", "chunk"), [("chunked", 1), ("chunked", 5), ("parallel", 1)])
def test_every_form_is_the_recurrence_with_all_gradients(form, chunk, decays):
    tokens = drawn(decays=decays)
    probe = torch.randn(B, H, N, E, dtype=torch.float64)
    wanted, last = scan_low_rank(**tokens, form="recurrent")
    out, held = scan_low_rank(**tokens, form=form, chunk=chunk)
    close(out, wanted)
    close(held.memory, last.memory)
    found = [torch.autograd.grad((y * probe).sum() + z.memory.sum(), list(tokens.values()))
             for y, z in ((wanted, last), (out, held))]  # fmt: skip
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-9)


def test_the_recurrence_is_its_equation():
    x = drawn()
    memory, outs = torch.zeros(B, H, D, E, dtype=torch.float64), []
    for t in range(N):
        passed = torch.diag_embed(x["log_decay"][:, :, t].exp())
        passed = passed + x["left"][:, :, t, :, None] * x["right"][:, :, t, None]
        memory = passed @ memory + x["k"][:, :, t, :, None] * x["v"][:, :, t, None]
        outs.append((x["q"][:, :, t, None] @ memory)[:, :, 0])
    close(scan_low_rank(**x, form="recurrent")[0], torch.stack(outs, 2))


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_the_delta_rule_is_one_of_them(form):
    x = drawn()
    beta = torch.rand(B, H, N, dtype=torch.float64)
    decay = x["log_decay"].detach()
    k = torch.nn.functional.normalize(x["k"], dim=-1)
    wanted, _ = scan(x["q"], k, x["v"], log_decay=decay, beta=beta)
    write = beta[..., None] * k
    out, _ = scan_low_rank(
        x["q"], write, x["v"], -write, decay.exp() * k, log_decay=decay, form=form, chunk=6
    )
    close(out, wanted)


def test_without_a_rank_one_map_it_is_a_plain_scan():
    x = drawn()
    zero = torch.zeros_like(x["left"])
    out, held = scan_low_rank(x["q"], x["k"], x["v"], zero, zero, log_decay=x["log_decay"])
    wanted, last = scan(x["q"], x["k"], x["v"], log_decay=x["log_decay"])
    close(out, wanted)
    close(held.memory, last.memory)


@pytest.mark.parametrize("cut", [1, 7, N - 1])
def test_segments_carried_by_the_state_equal_the_whole(cut):
    x = drawn()
    wanted, last = scan_low_rank(**x)
    first, state = scan_low_rank(**{name: t[:, :, :cut] for name, t in x.items()})
    second, held = scan_low_rank(**{name: t[:, :, cut:] for name, t in x.items()}, state=state)
    close(torch.cat((first, second), 2), wanted)
    close(held.memory, last.memory)


@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel"])
def test_packed_documents_equal_documents_apart(form):
    x, cuts = drawn(), (0, 5, 6, 17, N)
    ids = torch.zeros(B, N, dtype=torch.long)
    for number, cut in enumerate(cuts[1:-1], 1):
        ids[:, cut:] = number
    out, _ = scan_low_rank(**x, reset=starts(ids), form=form, chunk=4)
    for a, b in itertools.pairwise(cuts):
        alone, _ = scan_low_rank(**{name: t[:, :, a:b] for name, t in x.items()})
        close(out[:, :, a:b], alone)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), list(x.values())))


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_padding_leaves_the_memory(form):
    x, pad = drawn(), 4
    keep = torch.ones(B, N, dtype=torch.bool)
    keep[:, :pad] = keep[:, -2:] = False
    out, held = scan_low_rank(**x, keep=keep, form=form, chunk=3)
    alone, last = scan_low_rank(**{name: t[:, :, pad:-2] for name, t in x.items()})
    close(out[:, :, pad:-2], alone)
    close(held.memory, last.memory)


@pytest.mark.parametrize("where", ["k", "v", "left", "right"])
@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel"])
def test_a_broken_token_reaches_itself_and_what_follows(form, where):
    x = drawn()
    wanted, _ = scan_low_rank(**x)
    broken = {name: t.detach().clone() for name, t in x.items()}
    broken[where][1, 0, 9, 0] = torch.nan
    out, held = scan_low_rank(**broken, form=form, chunk=4)
    keeps = torch.ones(B, H, N, dtype=torch.bool)
    keeps[1, 0, 9:] = False
    assert torch.equal(out.isfinite().all(-1), keeps)
    close(out[keeps], wanted[keeps])
    assert torch.equal(held.memory.isfinite().flatten(2).all(-1), keeps[:, :, -1])


def test_strong_decay_neither_overflows_nor_loses_precision():
    x = drawn(n=40)
    x["log_decay"] = torch.where(torch.arange(40) % 7 == 0, -60.0, -1e-3)[None, None, :, None]
    x["log_decay"] = x["log_decay"].double().expand(B, H, 40, D)
    wanted, _ = scan_low_rank(**x, form="recurrent")
    close(scan_low_rank(**x)[0], wanted)
    halves = {name: t.float() for name, t in x.items()}
    close(scan_low_rank(**halves)[0].double(), wanted, 2e-5)


def test_key_heads_are_shared():
    x = drawn()
    few = {name: x[name][:, :1] for name in ("k", "v", "left", "right")}
    whole = {name: t.expand(-1, H, -1, -1) for name, t in few.items()}
    wanted, _ = scan_low_rank(x["q"], **whole, log_decay=-0.1)
    close(scan_low_rank(x["q"], **few, log_decay=-0.1)[0], wanted)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"left": None}, "left"), ({"right": torch.ones(B, H, N, D + 1)}, "right"),
     ({"form": "fla"}, "form"), ({"chunk": 0}, "chunk"), ({"log_decay": math.pi}, "log_decay")],
)  # fmt: skip
def test_wrong_uses_are_told(change, said):
    with pytest.raises(RegardError) as raised:
        scan_low_rank(**{**drawn(), **change})
    assert raised.value.argument == said
