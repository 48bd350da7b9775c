"""Scores of heads are those of TransformerLens, on the model that ships.

The result of a run is kept in benchmarks/equality/equal-to-transformerlens.json.
"""

import importlib.util

import pytest
import torch

from regard.circuits.patching import activation_patching, logit_difference
from regard.models.attach import attach, hook_of
from regard.models.loading import DEMO, load
from regard.models.residual import watched
from regard.probes import Reading
from regard.probes.logits import logit_parts
from regard.probes.parameters import Copying, composition
from regard.probes.roles import DuplicateToken, Induction, PreviousToken

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens") is None, reason="pip install transformer-lens"
)
PERIOD = 40


@pytest.fixture(scope="module")
def ours():
    return load(None)[0].float().eval()


@pytest.fixture(scope="module")
def theirs():
    from transformer_lens.model_bridge import TransformerBridge

    model, tokenizer = load(None)
    return TransformerBridge.boot_transformers(
        str(DEMO), hf_model=model.float(), tokenizer=tokenizer, device="cpu"
    )


@pytest.fixture(scope="module")
def ids():
    draw = torch.Generator().manual_seed(0)
    stretch = torch.randint(20, 2000, (1, PERIOD), generator=draw)
    return torch.cat([torch.zeros(1, 1).long(), stretch, stretch], 1)


@pytest.fixture(scope="module")
def cache(theirs, ids):
    with torch.no_grad():
        return theirs.run_with_cache(ids)


def looked(model, probe, ids):
    probe.show(Reading({"input_ids": ids}, period=PERIOD))
    with attach(model, probe, check=False), torch.no_grad():
        model(ids)
    return torch.stack(list(probe.told().values.values())).float()


def test_logits_are_the_same(ours, cache, ids):
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, cache[0], atol=1e-4)


@pytest.mark.parametrize("current", [False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("definition", "measure"), [("share", "mul"), ("difference", "abs")])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (PreviousToken, "previous_token_head"),
        (DuplicateToken, "duplicate_token_head"),
        (Induction, "induction_head"),
    ],
)
def test_detect_head(ours, cache, ids, kind, name, definition, measure, bos, current):
    import transformer_lens.head_detector as detector

    probe = kind(definition=definition, exclude_bos=bos, exclude_current_token=current)
    found = looked(ours, probe, ids)
    wanted = torch.zeros_like(found)
    pattern = getattr(detector, f"get_{name}_detection_pattern")(ids.cpu())
    for layer in range(4):
        for head in range(8):
            # It writes into what it is given.
            attention = cache[1][f"blocks.{layer}.attn.hook_pattern"][0, head].clone()
            wanted[layer, head] = detector.compute_head_attention_similarity_score(
                attention, pattern.clone(),
                exclude_bos=bos, exclude_current_token=current, error_measure=measure,
            )  # fmt: skip
    # By "abs" it rounds to three places.
    assert torch.allclose(found, wanted, atol=1e-5 if measure == "mul" else 6e-4)


def test_stripes_of_the_demonstration(ours, cache, ids):
    """As its main demonstration scores induction: the diagonal of the map at period - 1."""
    found = looked(ours, Induction(), ids)
    for layer in range(4):
        pattern = cache[1][f"blocks.{layer}.attn.hook_pattern"][0]
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - PERIOD)
        assert torch.allclose(found[layer], stripe.mean(-1), atol=1e-5)


@pytest.mark.parametrize("kind", "QKV")
def test_composition_scores(ours, theirs, kind):
    wanted = theirs.all_composition_scores(kind).scores  # [layer, head, layer, head]
    found = composition(ours, kind).values.view(4, 8, 4, 8).float()
    for first in range(4):
        for second in range(first + 1, 4):
            assert torch.allclose(
                found[first, :, second], wanted[first, :, second].float(), atol=1e-5
            )


def test_eigenvalue_copying(ours, theirs):
    from transformer_lens.FactoredMatrix import FactoredMatrix

    probe = Copying()
    with attach(ours, probe, check=False):
        pass
    found = torch.stack(list(probe.told().values.values()))
    v = theirs._expand_kv_heads(theirs.W_V)
    values = FactoredMatrix(v, theirs.W_O).eigenvalues
    wanted = values.sum(-1).real / values.abs().sum(-1)
    assert torch.allclose(found, wanted.float(), atol=1e-4)


def test_direct_logit_attribution(ours, cache, ids):
    """By the definition of the bridge's cache: heads' results through its norm's own scale."""
    token, other = 500, 501
    parts = logit_parts(watched(ours, ids, limit=ids.shape[1]), token, other)
    with torch.no_grad():
        scale = ours.model.norm.weight
        w = ours.get_output_embeddings().weight
        final = cache[1]["blocks.3.hook_out"]
        rms = (final[0, -1].pow(2).mean() + ours.config.rms_norm_eps).sqrt()
        direction = (w[token] - w[other]) * scale / rms
        for site in parts.heads:
            z = cache[1][f"blocks.{site.layer}.attn.hook_z"][0, -1]  # [head, d]
            z = z.view(8, -1)
            o = ours.model.layers[site.layer].self_attn.o_proj.weight.T.view(8, -1, 192)
            wanted = torch.einsum("hd,hdm,m->h", z, o, direction)
            assert torch.allclose(parts.heads[site][0], wanted, atol=1e-4)


def test_activation_patching_of_heads(ours, theirs, cache, ids):
    other = ids.clone()
    other[0, 10], other[0, 50] = 700, 700
    metric = logit_difference(500, 501)
    found = activation_patching(ours, ids, other, metric)
    site = hook_of(ours)[1][2]
    with torch.no_grad():
        for head in (0, 3, 7):

            def patch(z, hook, head=head):
                clean = cache[1]["blocks.2.attn.hook_z"]
                z = z.clone()
                shaped, kept = z.view(*z.shape[:2], 8, -1), clean.view(*z.shape[:2], 8, -1)
                shaped[:, :, head] = kept[:, :, head]
                return shaped.view_as(z)

            logits = theirs.run_with_hooks(other, fwd_hooks=[("blocks.2.attn.hook_z", patch)])
            m = float(metric(logits))
            wanted = (m - found.corrupt) / (found.clean - found.corrupt)
            assert float(found.scores.values[site][head]) == pytest.approx(wanted, abs=1e-3)


def test_nothing_of_ours_is_left_on_the_model(ours):
    assert not any(m._forward_hooks for m in ours.modules())
