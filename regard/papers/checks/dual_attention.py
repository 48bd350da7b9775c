"""No relational head is multi-head attention; relations survive rotations; unseen pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.attention import Attention
from regard.layers.registry import layer as layer_named
from regard.layers.relational import DualAttention, RelationalAttention
from regard.layers.stack import Block
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit

# Heads of 21 are the narrowest that give multi-head attention as many parameters.
GIVEN: dict[str, dict[str, int]] = {
    "dual_attention": {"relational": 4, "relations": 4, "width": 32, "symmetric": True},
    "mha": {"head_dim": 21},
}


def _same_or_not(name: str) -> tuple[float, int]:
    """Accuracy on pairs of objects not seen in training, of a block that saw 64; parameters."""
    restart()
    objects = F.normalize(torch.randn(564, 32), dim=-1) * 32**0.5
    block = Block(layer_named(name, 32, heads=4, **GIVEN[name]))
    last = nn.Linear(32, 2)

    def batch(rows: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        pair = torch.randint(start, stop, (rows, 2))
        alike = torch.rand(rows) < 0.5
        pair[alike, 1] = pair[alike, 0]
        return objects[pair], (pair[:, 0] == pair[:, 1]).long()

    def loss() -> Tensor:
        x, wanted = batch(64, 0, 64)
        return F.cross_entropy(last(block(x).mean(1)), wanted)

    fit([*block.parameters(), *last.parameters()], loss, 400, 3e-3)
    x, wanted = batch(2000, 64, 564)
    accuracy = float((last(block(x).mean(1)).argmax(-1) == wanted).float().mean())
    return accuracy, sum(one.numel() for one in block.parameters())


@check("dual_attention")
def dual() -> Claims:
    """No relational head is multi-head attention; relations survive rotations; unseen pairs."""
    x = torch.randn(2, 11, 32)
    plain, none = Attention(32, heads=4), DualAttention(32, heads=4, relational=0)
    none.sensory.load_state_dict(plain.state_dict())
    same = bool(torch.equal(none(x), plain(x)))
    layer = RelationalAttention(32, heads=2, relations=3, symmetric=True)
    with torch.no_grad():
        layer.of_symbols.zero_()
        before = layer(x)
        turn = torch.linalg.qr(torch.randn(3, layer.width, layer.width)).Q
        maps = layer.to_relation.weight.view(3, layer.width, 32)
        maps.copy_(turn @ maps)
    turned = gap(layer(x), before)
    alpha = torch.rand(11, 11).softmax(-1)
    _, told = layer.keys(x)
    own = layer.to_relation(x).unflatten(-1, (3, -1))
    pairs = torch.einsum("bilp,bjlp->bijl", own, own)
    direct = torch.einsum("ij,bijl->bil", alpha, pairs)
    averaged = torch.einsum("ij,bje->bie", alpha, told[:, 0, :, : 3 * layer.width])
    short = gap((own * averaged.unflatten(-1, (3, -1))).sum(-1), direct)
    (dual_accuracy, dual_size), (plain_accuracy, plain_size) = map(_same_or_not, GIVEN)
    yield claim("n_ra=0 equals MHA", "equal bit for bit", same).equals(True, "multi-head attention")
    yield claim("if W_s=0", "change when the relation space is turned", turned).within(
        1e-5, "the output before", because=FLOAT32
    )
    yield claim("if W_s=0", "averaging first against averaging relations", short).within(
        1e-4, "the paper's sum, written out", because=FLOAT32
    )
    yield claim(
        "on a same/different pair task", "parameters of the matched multi-head model", plain_size
    ).at_least(dual_size, "parameters of the relational model")
    yield claim("on a same/different pair task", "accuracy on unseen objects", dual_accuracy).above(
        0.9, "the catalogue's bound", because=CATALOGUE
    )
    yield claim("on a same/different pair task", "the same", dual_accuracy).above(
        plain_accuracy,
        "multi-head attention with at least as many parameters",
        plus=0.05,
        because="a difference of 5 points is over four standard errors of 2,000 pairs",
    )
