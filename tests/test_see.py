"""`regard.see` and `regard see`, over models of many kinds."""

import numpy as np
import pytest
import torch

import regard
from regard.core.errors import CapabilityError, RuleError
from regard.probes import Probe
from regard.probes.importance import Importance, ablation, taken_out

pytest.importorskip("transformers")

from regard.models.loading import LoadingError
from tests.architectures import DECODERS, ENCODERS, IMAGES, OTHERS, PAIRS, build, other

IDS = torch.randint(5, 60, (2, 24), generator=torch.Generator().manual_seed(0))


def llama():
    torch.manual_seed(0)
    return build("llama", DECODERS["llama"], causal=True)


def kinds():
    yield "llama", llama, IDS
    yield "gemma2", lambda: build("gemma2", DECODERS["gemma2"], causal=True), IDS
    yield "bert", lambda: build("bert", ENCODERS["bert"]), IDS
    picture = next(iter(IMAGES))
    yield picture, lambda: build(picture, IMAGES[picture]), torch.randn(1, 3, 16, 16)
    pair = {"input_ids": IDS, "decoder_input_ids": IDS[:, :6]}
    yield "t5", lambda: build("t5", PAIRS["t5"]), pair
    for name in OTHERS:
        yield name, lambda name=name: other(name)[0], None


KINDS = list(kinds())


@pytest.mark.parametrize(("name", "make", "inputs"), KINDS, ids=[kind[0] for kind in KINDS])
def test_models_of_every_kind_can_be_seen(name, make, inputs, tmp_path):
    model = make()
    inputs = other(name)[1] if inputs is None else inputs
    before = {key: x.clone() for key, x in model.state_dict().items()}
    seen = regard.see(model, inputs, ["roles", "sinks", "shape"])
    assert "entropy" in seen.scores
    for scores in seen.scores.values():
        values = scores.array()
        assert np.isfinite(values).any()
        assert (values[np.isfinite(values)] >= -1e-6).all()
    run = seen.run()
    assert run.arrays["role"].shape[0] == len(run.manifest["sites"]) == len(seen.sites)
    assert (tmp_path / "x.html") == seen.save(tmp_path / "x.html")
    assert seen.to_frame().shape[0] == sum(site.heads for site in seen.sites)
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])


def test_a_group_leaves_out_what_cannot_look_and_a_name_does_not():
    bert = build("bert", ENCODERS["bert"])
    assert "induction" in regard.see(bert, IDS, ["roles"]).skipped
    with pytest.raises(CapabilityError, match="attends to the future"):
        regard.see(bert, IDS, ["induction"])


def test_importance_is_the_gradient_of_a_gate():
    model = llama()
    found = regard.see(model, IDS, [Importance(definition="raw")]).scores["importance"].array()
    step, grads = 1e-3, np.zeros_like(found)
    for s in range(found.shape[0]):
        for h in range(found.shape[1]):
            for row in IDS:
                losses = []
                for gate in (1 - step, 1 + step):
                    edit = regard.models.Edit(
                        "out", lambda x, gate=gate: gate * x, where={"layers": s, "heads": [h]}
                    )
                    with regard.attach(model, edit, check=False), torch.no_grad():
                        one = row[None]
                        losses.append(float(model(input_ids=one, labels=one).loss.double()))
                grads[s, h] += abs(losses[1] - losses[0]) / (2 * step) / len(IDS)
    assert np.abs(grads - found).max() < 2e-3 * max(1.0, found.max())


def test_a_head_taken_out_is_a_head_of_zeros():
    model = llama()

    def loss(m):
        with torch.no_grad():
            return float(m(input_ids=IDS, labels=IDS).loss)

    sites = regard.attach(model, check=False).sites
    changes = ablation(model, loss, [(sites[0], 1)])
    kept = model.model.layers[0].self_attn.o_proj.weight
    size = model.config.hidden_size // model.config.num_attention_heads
    plain = loss(model)
    with torch.no_grad():
        kept[:, size : 2 * size] = 0
    assert changes[sites[0], 1] == pytest.approx(loss(model) - plain, abs=1e-5)
    assert taken_out([(sites[0], 0)]).heads == {sites[0]: [0]}


def test_ctrl_c_keeps_what_was_seen():
    class Impatient(Probe):
        key = title = "impatient"

        def look(self, site, call, survey):
            if site.layer == 1:
                raise KeyboardInterrupt

    seen = regard.see(llama(), IDS, ["entropy", Impatient()])
    assert seen.interrupted
    assert 1 <= len(seen.scores["entropy"].values) < 3
    assert "interrupted" in seen.findings()[-1]


def test_chosen_heads_are_kept_in_full():
    seen = regard.see(llama(), IDS, "entropy", heads=[(1, 2)])
    assert [(deep.site.layer, deep.head) for deep in seen.deep] == [(1, 2)]
    assert seen.top("entropy", 1)[0].name.startswith("L")


def test_a_backward_is_run_only_where_importance_is_asked_for():
    told = []
    usual = regard.see(llama(), IDS, heads=0, progress=lambda *x: told.append(x))
    assert "importance" not in usual.scores
    assert "gradients" not in {title for title, *_ in told}
    asked = regard.see(llama(), IDS, ["standard", "importance"], heads=0)
    assert set(asked.scores) == {*usual.scores, "importance"}


def test_progress_is_told_site_by_site():
    told = []
    regard.see(llama(), IDS, "entropy", heads=0, progress=lambda *x: told.append(x))
    assert told[-1][1] == told[-1][2] > 1


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: regard.see(llama(), "words"), RuleError, "tokenizer"),
        (lambda: regard.see(llama(), 3), RuleError, "token ids"),
        (lambda: regard.see(llama(), IDS, "entropie"), RuleError, "did you mean 'entropy'"),
        (lambda: regard.see("no/such/model"), LoadingError, "check the name"),
        (lambda: regard.see(torch.nn.Linear(2, 2), IDS), regard.RegardError, "attends nowhere"),
        (lambda: regard.see(llama(), IDS, "entropy").top("sink"), RuleError, "entropy"),
    ],
)
def test_bad_questions_are_answered_clearly(ask, error, says):
    with pytest.raises(error, match=says):
        ask()


def test_chosen_heads_are_the_same_kept_or_looked_at_again(monkeypatch):
    from regard.probes import maps

    looks = []
    for room in (maps.KEPT_BYTES, 10):
        monkeypatch.setattr(maps, "KEPT_BYTES", room)
        told: list[tuple[str, int, int]] = []
        seen = regard.see(
            inputs="import os\nimport sys\n" * 20, probes=["entropy"], heads=[(1, 0), (2, 3)],
            progress=lambda *said, told=told: told.append(said),
        )  # fmt: skip
        looks.append((seen.deep, told))
    (kept, once), (again, twice) = looks
    assert [t for t in once if t[0] == "chosen heads"] == []
    # The second forward ends at the last of the chosen heads.
    assert [t for t in twice if t[0] == "chosen heads"] == [
        ("chosen heads", 1, 4), ("chosen heads", 2, 4),
    ]  # fmt: skip
    for x, y in zip(kept, again, strict=True):
        assert (x.site, x.head, x.facts) == (y.site, y.head, y.facts)
        assert all(
            torch.equal(getattr(x, part), getattr(y, part)) for part in ("q", "k", "lse", "map")
        )
