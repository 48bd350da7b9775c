"""Whole models: decoding, sharing, sampling and what goes wrong."""

import copy

import pytest
import torch

import regard
from regard.core.errors import RegardError
from regard.layers.stack import Block, FeedForward, LanguageModel, Stack, grouped_sources, pick

KINDS = [
    {"layers": ["mha"] * 3, "position": "rotary"},
    {"layers": ["gqa", "retention", "linear"], "kv_heads": 2},
    {"layers": ["cross_layer_attention"] * 4, "sources": [0, 0, 2, 2], "position": "alibi"},
    {"layers": ["mqa"] * 2, "absolute": "sinusoidal"},
    {"layers": ["mha"] * 2, "absolute": "learned", "longest": 40},
]


def make(**settings):
    torch.manual_seed(0)
    return regard.model(**{"dim": 32, "heads": 4, "vocab": 61, **settings}).double().eval()


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(s["layers"]))
def test_generating_equals_asking_for_the_whole_each_time(settings):
    model = make(**settings)
    tokens = torch.randint(0, 61, (3, 9))
    slow = tokens
    for _ in range(8):
        slow = torch.cat((slow, model(slow)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(model.generate(tokens, 8), slow)


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(s["layers"]))
def test_left_padded_prompts_go_on_as_if_alone(settings):
    model = make(**settings)
    tokens = torch.randint(0, 61, (2, 9))
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, :4] = False
    both = model.generate(tokens, 6, padding=real)
    assert torch.equal(both[:1], model.generate(tokens[:1], 6))
    assert torch.equal(both[1:, 4:], model.generate(tokens[1:, 4:], 6))


def test_checkpointing_changes_no_gradient():
    model = make(layers=["mha"] * 2, position="rotary").train()
    other = copy.deepcopy(model)
    other.stack.checkpointing = True
    tokens = torch.randint(0, 61, (2, 9))
    for m in (model, other):
        m(tokens).logsumexp(-1).sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad)


def test_sharing_layers_own_no_keys_and_keep_none():
    shared = make(layers=["cross_layer_attention"] * 4, sources=grouped_sources(4, 2))
    alone = make(layers=["cross_layer_attention"] * 4)
    kept = []
    for model in (shared, alone):
        memory = model.memory()
        with torch.no_grad():
            model(torch.randint(0, 61, (1, 20)), memory=memory)
        kept.append(sum(memory.get(f"{i}").get("mixer").nbytes for i in range(4)))
    assert kept[0] * 2 == kept[1]
    assert sum(b.mixer.to_k is None for b in shared.stack.blocks) == 2


def test_a_sharer_reads_the_owner():
    model = make(layers=["cross_layer_attention"] * 2, sources=[0, 0])
    owner, sharer = (block.mixer for block in model.stack.blocks)
    x, y = torch.randn(2, 1, 7, 32, dtype=torch.float64)
    between = {}
    owner(x, between=between)
    k, v = owner.keys(x)
    out = regard.attend(sharer.queries(y), k, v, regard.Causal())
    wanted = sharer.to_out(out.transpose(1, 2).flatten(2))
    assert torch.allclose(sharer(y, between=between), wanted)


def test_a_context_is_read_once_and_kept():
    torch.manual_seed(0)
    block = Block(
        regard.layer("mha", 32, heads=4, causal=True),
        cross=regard.layer("mha", 32, heads=4, context_dim=16),
        norm_first=False,
    ).double()
    x, context = torch.randn(2, 8, 32).double(), torch.randn(2, 5, 16).double()
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    whole = block(x, context, context_padding=real)
    from regard.memories import LayerMemory

    memory = LayerMemory("block")
    first = block(x[:, :3], context, memory=memory, context_padding=real)
    rest = [block(x[:, i : i + 1], memory=memory) for i in range(3, 8)]
    assert torch.allclose(torch.cat([first, *rest], 1), whole)


def test_stop_ends_a_row_and_lengths_stay():
    model = make(layers=["mha"])
    tokens = torch.randint(0, 61, (4, 5))
    stop = int(model.generate(tokens, 1)[0, -1])
    made = model.generate(tokens, 9, stop=stop)
    assert made.shape == (4, 14)
    assert (made[0, 5:] == stop).all()


def test_sampling_draws_from_the_likely():
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(20_000, -1)
    generator = torch.Generator().manual_seed(0)
    free = torch.bincount(pick(scores, 1.0, generator=generator), minlength=4) / 20_000
    assert torch.allclose(free, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.02)
    assert set(pick(scores, 1.0, top_k=2, generator=generator).tolist()) == {0, 1}
    assert set(pick(scores, 1.0, top_p=0.7, generator=generator).tolist()) == {0, 1}
    cold = torch.bincount(pick(scores, 0.5, generator=generator), minlength=4) / 20_000
    assert torch.allclose(cold[0], torch.tensor(0.25 / 0.365), atol=0.02)


WRONG = {
    "no layers": (lambda: make(layers=[]), "layers"),
    "a name that is none": (lambda: make(layers=["mhaa"]), "name"),
    "a number for a layer": (lambda: make(layers=[3]), "layers"),
    "an unknown setting": (lambda: make(layers=["mha"], positoin="rotary"), "settings"),
    "sources ahead": (
        lambda: make(layers=["cross_layer_attention"] * 2, sources=[1, 1]),
        "sources",
    ),
    "sources of a sharer": (
        lambda: make(layers=["cross_layer_attention"] * 3, sources=[0, 0, 1]),
        "sources",
    ),
    "too few sources": (lambda: make(layers=["mha"] * 3, sources=[0, 0]), "sources"),
    "absolute unknown": (lambda: make(layers=["mha"], absolute="sinus"), "absolute"),
    "no mixer": (lambda: Block(torch.nn.Linear(2, 2)), "mixer"),
    "no blocks": (lambda: Stack([]), "blocks"),
    "no vocabulary": (lambda: make(layers=["mha"], vocab=0), "vocab"),
    "width of none": (lambda: FeedForward(8, 0), "width"),
    "tokens in floats": (lambda: make(layers=["mha"])(torch.rand(1, 3)), "tokens"),
    "tokens without batch": (lambda: make(layers=["mha"])(torch.zeros(3).long()), "tokens"),
    "cold below zero": (
        lambda: make(layers=["mha"]).generate(torch.zeros(1, 3).long(), 2, temperature=-1.0),
        "temperature",
    ),
    "no share": (
        lambda: make(layers=["mha"]).generate(
            torch.zeros(1, 3).long(), 2, temperature=1.0, top_p=0.0
        ),
        "top_p",
    ),
    "a sharer alone": (
        lambda: regard.layer("cross_layer_attention", 8, heads=2, owns_keys=False)(
            torch.zeros(1, 2, 8)
        ),
        "between",
    ),
    "longer than learned": (
        lambda: make(layers=["mha"], absolute="learned", longest=4)(torch.zeros(1, 9).long()),
        "positions",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    attempt, argument = WRONG[name]
    with pytest.raises(RegardError) as raised:
        attempt()
    assert raised.value.argument == argument


def test_a_model_learns_to_copy():
    """Two layers find the induction rule on short repeats: the parts train together."""
    torch.manual_seed(0)
    model = regard.model(["mha"] * 2, dim=64, heads=4, vocab=16, position="rotary", tied=False)
    assert isinstance(model, LanguageModel)
    adam = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(250):
        half = torch.randint(0, 16, (32, 8))
        tokens = torch.cat((half, half), dim=1)
        loss = torch.nn.functional.cross_entropy(
            model(tokens)[:, 8:-1].flatten(0, 1), half[:, 1:].flatten()
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.5, f"{loss:.2f} nats, of {torch.tensor(16.0).log():.2f} at the start"
