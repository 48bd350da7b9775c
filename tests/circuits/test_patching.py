"""Patching: the same changes nothing, everything at once changes all, wired paths are found."""

import pytest
import torch

import regard
from regard.circuits.edges import LOGITS, edge_attribution, emergent
from regard.circuits.name_movers import naming_circuit
from regard.circuits.patching import (
    Patched,
    activation_patching,
    attribution_patching,
    in_circuit,
    knockout,
    logit_difference,
    overlap,
    path_patching,
    recorded,
)  # fmt: skip
from regard.circuits.tracing import signal, sources, watch
from regard.core.errors import RuleError, ShapeError, ValueRangeError
from regard.models.attach import attach, hook_of
from regard.papers.shared.wired import Wired
from tests.architectures import DECODERS, build

DRAW = torch.Generator().manual_seed(0)
CLEAN = torch.randint(5, 60, (2, 9), generator=DRAW)
CORRUPT = CLEAN.clone()
CORRUPT[:, 3] = torch.tensor([11, 12])
METRIC = logit_difference(7, 8)


def small(name="llama", **more):
    torch.manual_seed(0)
    model = build(name, {**DECODERS[name], **more}, causal=True).eval()
    for p in model.parameters():  # heads of some size, so that effects are no rounding
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    return model


def metric(model, ids):
    with torch.no_grad():
        return float(METRIC(model(ids)))


def test_patching_all_heads_of_one_layer_model_brings_all_back_but_the_rest():
    model = small(num_hidden_layers=1)
    record, clean = recorded(model, CLEAN, METRIC)
    every = {site: range(4) for site in record.parts}
    corrupt = metric(model, CORRUPT)
    with attach(model, Patched(record.parts, every), check=False):
        # The last token is the same in both: only its heads told it of the change.
        assert metric(model, CORRUPT) == pytest.approx(clean, abs=1e-5)
    assert abs(clean - corrupt) > 1e-3
    assert metric(model, CORRUPT) == pytest.approx(corrupt)


@pytest.mark.parametrize("part", ["out", "q", "k", "v"])
def test_each_head_patched_alone_is_what_the_definition_says(part):
    model = small()
    effect = activation_patching(model, CLEAN, CORRUPT, METRIC, part=part)
    record, clean = recorded(model, CLEAN, METRIC)
    corrupt = metric(model, CORRUPT)
    assert (effect.clean, effect.corrupt) == (pytest.approx(clean), pytest.approx(corrupt))
    for site, scores in effect.scores.values.items():
        for head, score in enumerate(scores.tolist()):
            patch = Patched(record.parts, {site: [head]}, part)
            with attach(model, patch, check=False):
                m = metric(model, CORRUPT)
            assert score == pytest.approx((m - corrupt) / (clean - corrupt), abs=1e-5)


def test_patching_at_one_token_leaves_the_others():
    model = small(num_hidden_layers=1)
    last = activation_patching(model, CLEAN, CORRUPT, METRIC, tokens=[8]).scores.array()
    every = activation_patching(model, CLEAN, CORRUPT, METRIC).scores.array()
    early = activation_patching(model, CLEAN, CORRUPT, METRIC, tokens=[0, 4]).scores.array()
    assert last == pytest.approx(every, abs=1e-5)
    assert early == pytest.approx(0, abs=1e-6)


def test_gradients_foretell_small_changes():
    model = small()
    near = {"inputs_embeds": model.get_input_embeddings()(CLEAN).detach()}
    moved = {"inputs_embeds": near["inputs_embeds"].clone()}
    moved["inputs_embeds"][:, 3] += 1e-3 * torch.randn(32, generator=DRAW)
    exact = activation_patching(model.double(), _double(near), _double(moved), METRIC)
    guess = attribution_patching(model, _double(near), _double(moved), METRIC)
    assert guess.scores.array() == pytest.approx(exact.scores.array(), abs=2e-2)


def _double(inputs):
    return {name: x.double() for name, x in inputs.items()}


def test_integrated_gradients_come_nearer():
    model = small()
    exact = activation_patching(model, CLEAN, CORRUPT, METRIC).scores.array()
    plain, finer = (
        abs(attribution_patching(model, CLEAN, CORRUPT, METRIC, steps=s).scores.array() - exact)
        for s in (1, 20)
    )
    assert finer.sum() < plain.sum()


def test_paths_of_the_same_input_have_no_effect_and_all_senders_have_all():
    model = small()
    with pytest.raises(ValueRangeError, match="the metric of the clean one"):
        path_patching(model, CLEAN, CLEAN, METRIC)
    effect = path_patching(model, CLEAN, CORRUPT, METRIC)
    record, clean = recorded(model, CLEAN, METRIC)
    other, _ = recorded(model, CORRUPT)
    # To the logits, with all else frozen: one sender is this, written out.
    site = next(iter(record.parts))
    frozen = {s: [h for h in range(4) if (s, h) != (site, 2)] for s in record.parts}
    kept = {}
    mlps = [m for name, m in model.named_modules() if name.endswith("mlp")]
    handles = [m.register_forward_hook(lambda m, a, o: kept.setdefault(m, o)) for m in mlps]
    metric(model, CLEAN)
    for handle in handles:
        handle.remove()
    handles = [m.register_forward_hook(lambda m, a, o: kept[m]) for m in mlps]
    stages = [Patched(record.parts, frozen), Patched(other.parts, {site: [2]})]
    with attach(model, stages, check=False):
        m = metric(model, CLEAN)
    for handle in handles:
        handle.remove()
    wanted = (m - clean) / (clean - effect.corrupt)
    assert float(effect.scores.values[site][2]) == pytest.approx(wanted, abs=1e-5)


def test_path_patching_finds_the_two_wired_heads_of_an_induction_circuit():
    model = Wired()
    ids = torch.tensor([[0, 3, 1, 4, 2, 5, 0, 3], [1, 4, 0, 3, 2, 5, 1, 4]])
    logits = model(ids)
    assert logits[:, -1].argmax(-1).tolist() == [1, 0]
    # What followed the token is another word; the query's own token stays.
    ids = ids[:1]
    corrupt = ids.clone()
    corrupt[0, 2] = 2
    corrupt[0, 4] = 1
    metric = logit_difference(1, 2)
    sites = hook_of(model)[1]
    direct = _direct(model, ids, corrupt, metric)
    assert in_circuit(direct.scores, share=0.25) == [(sites[1], 0)]
    # Keys: the first layer's wired head alone changes them.
    shifted = torch.tensor([[0, 3, 1, 4, 2, 5, 0, 3]])
    other = torch.tensor([[0, 4, 1, 3, 2, 5, 0, 3]])
    keys = _direct(model, shifted, other, metric, receivers=[(sites[1], 0)], part="k")
    found = {h.name: h.value for h in keys.scores.heads()}
    assert min(found, key=lambda name: found[name]) == "L0H1"
    assert abs(found["L0H0"]) < 1e-6
    assert found["L0H1"] < -0.5
    none = _direct(model, shifted, other, metric, receivers=[(sites[1], 0)], part="v")
    assert abs(none.scores.values[sites[0]][0]) < 1e-6


def _direct(model, clean, corrupt, metric, **more):
    return path_patching(model, clean, corrupt, metric, freeze_mlp=False, **more)


def test_a_knockout_leaves_the_query_to_itself():
    model = small()
    seen = []

    class Look(regard.models.Stage):
        want = ("weights",)

        def see(self, call, result):
            seen.append(result.weights)

    barred = knockout([8], list(range(8)))
    with attach(model, [barred, Look()], check=False), torch.no_grad():
        model(CLEAN)
    for weights in seen:
        assert torch.allclose(weights[:, :, 8, 8], torch.ones(2, 4))
        assert float(weights[:, :, 8, :8].abs().max()) == 0.0
        assert float(weights[:, :, 7, :7].min()) > 0


def test_circuits_overlap_as_sets_and_wrong_inputs_are_errors():
    site = hook_of(small())[1][0]
    assert overlap([(site, 0), (site, 1)], [(site, 1), (site, 2)]) == pytest.approx(1 / 3)
    model = small()
    with pytest.raises(ShapeError, match="one length"):
        activation_patching(model, CLEAN, CORRUPT[:, :5], METRIC)
    with pytest.raises(RuleError, match="name what is patched"):
        activation_patching(model, CLEAN, CORRUPT, METRIC, part="z")
    with pytest.raises(RuleError, match="one of q, k, v"):
        path_patching(model, CLEAN, CORRUPT, METRIC, part="out")
    with pytest.raises(ValueRangeError, match="steps"):
        attribution_patching(model, CLEAN, CORRUPT, METRIC, steps=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_edges_into_the_logits_sum_to_the_change_of_a_model_that_is_nearly_linear(name):
    """A small step: gradients are exact to first order, and only direct edges reach the logits."""
    model = small(name).double()
    table = model.get_input_embeddings().weight.data
    table[11:13] = table[CLEAN[:, 3]] + 1e-4 * torch.randn(2, 32, generator=DRAW).double()
    edges = edge_attribution(model, CLEAN, CORRUPT, METRIC, steps=1)
    assert edges.into(LOGITS) == pytest.approx(edges.clean - edges.corrupt, rel=0.01)


def test_edges_run_forward_only_and_dead_ends_are_cut():
    model = small()
    edges = edge_attribution(model, CLEAN, CORRUPT, METRIC, steps=3)
    assert all(reader.depth > writer.depth for writer, reader in edges.scores)
    readers = {str(reader) for _, reader in edges.scores}
    assert {"L1H0.q", "L1H3.v", "L0 MLP", "logits"} <= readers
    for count in (1, 5, 40):
        circuit = edges.circuit(count)
        writers = {writer.name for writer, _ in circuit}
        assert len(circuit) <= count
        assert all(reader.name == LOGITS or reader.name in writers for _, reader in circuit)
    changed = emergent(edges.heads(10), edges.heads(60))
    assert not changed["vanished"] or changed["kept"] | changed["emerged"]
    with pytest.raises(ValueRangeError, match="one shape"):
        edge_attribution(model, CLEAN, CORRUPT[:, :4], METRIC)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi"])
def test_signals_sum_to_the_score_and_their_sources_to_the_signal(name):
    model = small(name)
    seen = watch(model, CLEAN)
    site = hook_of(model)[1][1]
    call = seen.calls[site]
    keys = call.k.repeat_interleave(call.h // call.g, 1)
    bias = name in ("gpt2", "gpt_neox", "phi")
    for head in range(4):
        found = signal(model, seen, site, head, query=8, key=3)
        raw = float(call.q[0, head, 8] @ keys[0, head, 3])
        assert found.score == pytest.approx(raw, rel=1e-4)
        if not bias:  # biases are no part of the terms
            assert float(found.terms.sum()) == pytest.approx(raw, rel=1e-3, abs=1e-4)
        kept = float(found.terms[: found.kept].sum())
        assert sum(x for _, x in sources(seen, found)) == pytest.approx(kept, rel=1e-3, abs=1e-3)
        at_query = sum(x for _, x in sources(seen, found, at="query"))
        assert at_query == pytest.approx(kept, rel=1e-3, abs=1e-3)


def test_normed_queries_and_wrong_places_are_refused():
    model = small("qwen3")
    seen = watch(model, CLEAN)
    with pytest.raises(regard.RegardError, match="query-key norms"):
        signal(model, seen, hook_of(model)[1][1], 0, 8, 3)
    model = small()
    with pytest.raises(ValueRangeError, match="query, key"):
        signal(model, watch(model, CLEAN), hook_of(model)[1][1], 0, 30, 3)


def test_roles_of_a_naming_circuit_are_those_that_were_wired():
    model = Wired()
    sites = hook_of(model)[1]
    ids = torch.tensor([[0, 3, 1, 4, 2, 5, 0, 3]])
    corrupt = torch.tensor([[0, 4, 1, 3, 2, 5, 0, 3]])  # another word stands before the answer
    metric = logit_difference(1, 2)
    circuit = naming_circuit(model, ids, corrupt, metric, share=0.25, freeze_mlp=False)
    assert circuit.movers == [(sites[1], 0)]
    assert circuit.negative == []
    assert circuit.feeds == {"q": [], "k": [(sites[0], 1)], "v": []}
    assert [row[:2] for row in circuit.table()] == [("mover", "L1H0"), ("feeds movers' k", "L0H1")]
    with pytest.raises(ValueRangeError, match="share"):
        naming_circuit(model, ids, corrupt, metric, share=2)
