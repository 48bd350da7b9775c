"""Scores are read against what a head that does nothing gives, on the very input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import regard
from regard.models.loading import load
from regard.probes import known
from regard.probes.importance import ablation
from regard.probes.reading import Reading

pytest.importorskip("transformers")

from tests.architectures import DECODERS, build

LONG = torch.randint(5, 60, (2, 64), generator=torch.Generator().manual_seed(1))


def random_model():
    torch.manual_seed(0)
    return build("llama", DECODERS["llama"], causal=True)


def words_of(ids):
    return Reading({"input_ids": ids}, words=[f" w{i}" if i % 9 else "." for i in ids[0].tolist()])


@pytest.mark.parametrize("length", [2, 3, 5, 9, 18, 24, 33, 64])
def test_a_random_model_has_no_roles_at_any_length(length):
    seen = regard.see(random_model(), words_of(LONG[:, :length]), ["roles", "sinks"], heads=0)
    assert {name: role.heads for name, role in seen.roles.items() if role.heads} == {}
    said = " ".join(seen.findings())
    assert "100% of heads rest" not in said


def test_a_text_too_short_for_a_score_says_so():
    seen = regard.see(random_model(), words_of(LONG[:, :18]), ["local", "previous_token"], heads=0)
    assert seen.roles["local"].too_short
    assert any("local window: not told, 36 tokens are too few" in x for x in seen.findings())
    assert not seen.roles["previous_token"].too_short
    seen = regard.see(random_model(), words_of(LONG[:, :9]), ["roles"], heads=0)
    assert "too short" in seen.skipped["local"]


def test_the_uniform_head_of_the_baseline_is_the_mean_of_one_over_the_keys():
    n = LONG.shape[1]
    probes = ["previous_token", "sink", "entropy", "concentration"]
    scores = regard.see(random_model(), LONG, probes, heads=0).scores
    keys = torch.arange(1, n + 1).double()

    def uniform(name):
        return next(iter(scores[name].chance.values())).uniform

    assert uniform("previous_token") == pytest.approx(float((1 / keys[1:]).mean()), abs=1e-6)
    assert uniform("sink") == pytest.approx(float((1 / keys).mean()), abs=1e-6)
    assert uniform("entropy") == pytest.approx(float(keys.log().mean()), abs=1e-5)
    assert uniform("concentration") == pytest.approx(float((1 / keys).mean()), abs=1e-6)
    assert scores["entropy"].tokens == 2 * n
    assert scores["sink"].tokens == 2 * 64


def test_a_baseline_is_that_of_the_support_of_its_site():
    torch.manual_seed(0)
    model = build("gemma2", DECODERS["gemma2"], causal=True)
    ids = torch.cat([LONG, LONG], 1)
    chance = regard.see(model, ids, ["concentration"], heads=0).scores["concentration"].chance
    windows = {site.module: x.uniform for site, x in chance.items()}
    assert len(set(windows.values())) > 1  # layers with a window have fewer keys to look at


# Probes that read weights, gradients, images or words of prompts, and are told by what they need.
TEXT = [name for name, kind in known().items() if kind.stimulus in ("text", "repeated", "needle")]


@pytest.mark.parametrize("name", TEXT)
def test_every_probe_that_looks_has_a_baseline_or_says_why_not(name):
    try:
        seen = regard.see(None, "a, b. " * 40, [name], heads=0)
    except regard.RegardError as refused:
        pytest.skip(f"not for a text alone: {refused.got}")
    scores = seen.scores.get(name)
    if scores is None:
        return
    assert scores.chance or known()[name].chance_free


def test_the_best_head_of_a_role_is_the_best_of_all_heads():
    seen = regard.see(heads=0, probes=["roles"])
    best = {name: seen.scores[name].top(1)[0] for name in seen.roles}
    for name, role in seen.roles.items():
        if role.heads:
            assert role.heads[0] == best[name]
            if name != "sink":
                told = next(x for x in seen.findings() if x.startswith(f"{role.title}:"))
                assert told.startswith(f"{role.title}: {best[name].name} ")
                assert "chance" in told
                assert "tokens" in told
    # A head of two roles is in both, and has one first role.
    places = [(h.site, h.head) for role in seen.roles.values() for h in role.heads]
    assert len(places) > len(set(places)) == len(seen.roles.first())


def test_a_cut_text_is_told():
    seen = regard.see(inputs="one two three. " * 2000, probes=["entropy"], heads=0)
    assert len(seen.words) == 2048
    assert "only the first 2,048 of" in seen.findings()[0]
    short = regard.see(inputs="one two three.", probes=["entropy"], heads=0)
    assert not any("only the first" in x for x in short.findings())
    ours = regard.see(probes=["entropy"], heads=0)  # a longer text, which nobody passed
    assert len(ours.words) == 2048
    assert not any("only the first" in x for x in ours.findings())


def test_where_chooses_what_is_looked_at():
    scores = regard.see(random_model(), LONG, ["entropy"], where=1, heads=0).scores["entropy"]
    assert [site.layer for site in scores.values] == [1]


def test_importance_is_compared_across_layers_by_sizes_that_can_be():
    seen = regard.see(random_model(), LONG, ["importance"], heads=0)
    raw = seen.scores["importance"].details["raw"]
    best = max(((float(x), s.layer, h) for s, v in raw.items() for h, x in enumerate(v)))
    told = next(x for x in seen.findings() if x.startswith("the loss feels most"))
    assert f"L{best[1]}H{best[2]} " in told.split(":", 1)[1].split(",")[0]
    assert "128 tokens" in told


def rank_correlation(a, b):
    ranks = [torch.as_tensor(x).argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize("tokens", [128, 512])
def test_importance_ranks_heads_as_taking_them_out_does(tokens):
    """On the model that ships, across layers; one gate for a whole text does not."""
    model, tokenizer = load()
    model = model.float()
    page = (Path(__file__).parents[2] / "docs" / "idea.md").read_text()
    ids = tokenizer(page, return_tensors="pt").input_ids[:, :tokens]
    assert ids.shape == (1, tokens)

    def loss(model):
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids, use_cache=False).loss)

    scores = regard.see(model, ids, ["importance"], heads=0).scores["importance"]
    heads = scores.heads()
    changes = ablation(model, loss, [(x.site, x.head) for x in heads])
    felt = [abs(changes[x.site, x.head]) for x in heads]
    assert rank_correlation([x.value for x in heads], felt) > 0.7


def test_induction_is_told_of_repeats_and_of_the_text():
    text = "one two three. " * 30
    seen = regard.see(inputs=text, probes=["induction", "induction_in_text"], heads=0)
    said = [x for x in seen.findings() if x.startswith("induction")]
    assert [x.split(":")[0] for x in said] == ["induction", "induction in this text"]
    assert all("chance" in x for x in said)
    page = (Path(__file__).parents[2] / "docs" / "idea.md").read_text()[:800]
    other = regard.see(inputs=page, probes=["induction", "induction_in_text"], heads=0)
    on_text = [x.scores["induction_in_text"].top(1)[0].value for x in (seen, other)]
    assert on_text[0] > on_text[1] + 0.1  # and on repeats they are the same
    on_repeats = [x.scores["induction"].array() for x in (seen, other)]
    assert (on_repeats[0] == on_repeats[1]).all()


def test_results_show_themselves():
    seen = regard.see(random_model(), LONG, ["previous_token", "sink", "entropy"], heads=0)
    for shown in (seen._repr_html_(), seen.roles._repr_html_(), seen.roles["sink"]._repr_html_()):
        assert shown.startswith("<div>")
        assert "<script" not in shown
        assert "http" not in shown
    assert "chance" in str(seen.roles["sink"])


def test_probes_that_look_together_read_one_survey_of_idle_heads(monkeypatch):
    from regard.probes import chance as module

    asked = []
    plain = module.survey_call

    def counted(call, want):
        asked.append(tuple(want))
        return plain(call, want)

    monkeypatch.setattr(module, "survey_call", counted)
    names = ["previous_token", "local", "entropy", "concentration", "strongest_sink"]
    ids = torch.randint(5, 60, (1, 40), generator=torch.Generator().manual_seed(0))
    model = build("llama", DECODERS["llama"], causal=True)
    together = regard.see(model, ids, names, heads=0).scores
    assert len(asked) == 1
    for name in names:
        alone = regard.see(model, ids, [name], heads=0).scores[name]
        assert together[name].chance == alone.chance
        assert alone.chance
