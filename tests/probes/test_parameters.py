"""What weights say: heads found in modules of the field, and heads made to copy or compose."""

import pytest
import torch
from torch import nn

import regard
from regard.core.errors import CapabilityError, RuleError, ValueRangeError
from regard.models.attach import attach, hook_of
from regard.models.projections import HeadWeights, head_weights
from regard.models.stage import Stage
from regard.probes.parameters import (
    Copying,
    Relation,
    Suppression,
    Vocabulary,
    balance,
    composition,
    salient,
    singular,
    successors,
    written,
)  # fmt: skip
from tests.architectures import DECODERS, ENCODERS, IMAGES, build

IDS = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
# Latent attention has no weights of one head, and one block of these adds its input itself.
WITHOUT = {"deepseek_v3"}
FAMILIES = [
    *((name, conf, {"causal": True}) for name, conf in DECODERS.items() if name not in WITHOUT),
    *((name, conf, {}) for name, conf in ENCODERS.items() if name != "albert"),
    *((name, conf, {}) for name, conf in IMAGES.items()),
]


class Outs(Stage):
    def __init__(self):
        super().__init__()
        self.outs = {}

    def after(self, call, partial):
        self.outs[call.site] = partial.out
        return partial


@pytest.mark.parametrize(("name", "conf", "how"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_heads_sum_to_what_the_output_layer_gives(name, conf, how):
    torch.manual_seed(0)
    model = build(name, conf, **how).eval()
    inputs = torch.randn(1, 3, 16, 16) if name in IMAGES else IDS
    sites, seen, outputs = hook_of(model)[1], Outs(), {}

    def keep(path):
        def hook(module, args, output):
            outputs.setdefault(path, output[0] if isinstance(output, tuple) else output)

        return hook

    packed = [s for s in sites if isinstance(model.get_submodule(s.module), nn.MultiheadAttention)]
    for site in packed:  # PyTorch's own keeps q, k and v in one tensor: its weights are refused
        with pytest.raises(CapabilityError, match="MultiheadAttention"):
            head_weights(model, site)
    sites = [site for site in sites if site not in packed]
    for site in sites:
        parent = site.module.rpartition(".")[0]
        beside = f"{parent}.output.dense"
        is_beside = name not in IMAGES and beside in dict(model.named_modules())
        path = beside if is_beside else site.module
        model.get_submodule(path).register_forward_hook(keep(site.module))
    with attach(model, seen, check=False), torch.no_grad():
        model(inputs)
    for site in sites:
        weights = head_weights(model, site)
        assert weights.heads == site.heads
        said = torch.einsum("bhne,hed->bnd", seen.outs[site], weights.o)
        if weights.o_bias is not None:
            said = said + weights.o_bias
        assert torch.allclose(said, outputs[site.module], atol=1e-5), site


def test_latent_attention_is_refused_by_name():
    model = build("deepseek_v3", DECODERS["deepseek_v3"], causal=True)
    with pytest.raises(CapabilityError, match="layers for q, k and v"):
        head_weights(model, hook_of(model)[1][0])


def test_queries_and_keys_are_those_of_the_model():
    """Where nothing turns them: GPT-2, whose layer is fused, and our own grouped layer."""
    for model in (
        build("gpt2", DECODERS["gpt2"], causal=True),
        regard.model([regard.layer("gqa", dim=32, heads=4, kv_heads=2, position=None)], vocab=64,
                     dim=32),
    ):  # fmt: skip
        model.eval()
        calls, inputs = [], []

        class Calls(Stage):
            def see(self, call, result, calls=calls):
                calls.append(call)

        site = hook_of(model)[1][0]

        def keep(module, args, kwargs, inputs=inputs):
            inputs.append(args[0] if args else kwargs["hidden_states"])

        home = model.get_submodule(site.module)
        hook = home.register_forward_pre_hook(keep, with_kwargs=True)
        with attach(model, Calls(), check=False), torch.no_grad():
            model(IDS)
        hook.remove()
        weights, x = head_weights(model, site), inputs[0]
        for part in "qkv":
            made = torch.einsum("bnd,hde->bhne", x, getattr(weights, part))
            bias = getattr(weights, f"{part}_bias")
            made = made if bias is None else made + bias[:, None]
            own = getattr(calls[0], part)
            wide = own.repeat_interleave(made.shape[1] // own.shape[1], 1)
            assert torch.allclose(made, wide, atol=1e-5)


def made(v: torch.Tensor, o: torch.Tensor) -> HeadWeights:
    return HeadWeights(v, v, v, o)


def test_copying_by_eigenvalues_of_known_maps():
    torch.manual_seed(0)
    v = torch.linalg.qr(torch.randn(2, 12, 4)).Q
    # A head that writes back what it reads, and one that writes against it.
    o = torch.stack([v[0].T, -v[1].T])
    assert torch.allclose(Copying().read(None, made(v, o)), torch.tensor([1.0, -1.0]))
    v, o = torch.randn(3, 12, 4), torch.randn(3, 4, 12)
    values = torch.linalg.eigvals((v @ o).double())
    wanted = values.sum(-1).real / values.abs().sum(-1)
    assert torch.allclose(Copying().read(None, made(v, o)).double(), wanted, atol=1e-5)
    assert torch.allclose(balance(o @ v).double(), wanted, atol=1e-5)


class Words(torch.nn.Module):
    """A vocabulary of orthogonal words."""

    def __init__(self, count=8):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.eye(count))
        self.head = torch.nn.Linear(count, count, bias=False)
        self.head.weight.data.copy_(torch.eye(count))

    def get_input_embeddings(self):
        return self.table

    def get_output_embeddings(self):
        return self.head


def test_heads_made_to_copy_to_map_and_to_suppress_are_found():
    model, eye = Words(24), torch.eye(24)
    shift = eye.roll(1, 1)  # word i writes word i + 1
    weights = made(eye.expand(3, -1, -1), torch.stack([eye, shift, -eye]))
    assert Copying(definition="top5").read(model, weights)[0] == 1.0
    assert Copying(definition="rises").read(model, weights).tolist() == [1.0, 0.0, 0.0]
    assert torch.allclose(Copying(definition="full").read(model, weights)[[0, 2]],
                          torch.tensor([1.0, -1.0]))  # fmt: skip
    assert Suppression().read(model, weights)[2] == 1.0
    following = Relation([(i, (i + 1) % 24) for i in range(24)], k=1)
    assert following.read(model, weights).tolist() == [0.0, 1.0, 0.0]
    own = Relation([(i, i) for i in range(24)], k=1, definition="suppresses")
    assert own.read(model, weights).tolist() == [0.0, 0.0, 1.0]


def test_written_logits_are_the_rows_of_the_whole_map():
    torch.manual_seed(1)
    model = build("llama", DECODERS["llama"], causal=True)
    site = hook_of(model)[1][0]
    weights, words = head_weights(model, site), Vocabulary.of(model)
    states = words.read / words.read.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()
    for head in range(4):
        whole = states @ weights.ov(head) @ words.write.T
        assert torch.allclose(written(words, weights, torch.arange(64))[head], whole, atol=1e-5)
    first = salient(model, site, 1, count=3)[0]
    size = (words.read @ weights.ov(1)).norm(dim=1) / words.read.norm(dim=1).clamp(min=1e-12)
    assert first.source == int(size.argmax())
    assert first.targets[0] == int((states[first.source] @ weights.ov(1) @ words.write.T).argmax())
    with pytest.raises(ValueRangeError, match="head"):
        salient(model, site, 9)


@pytest.mark.parametrize("kind", "QKV")
def test_composition_is_the_ratio_of_norms(kind):
    model = build("llama", DECODERS["llama"], causal=True)
    found, sites = composition(model, kind), hook_of(model)[1]
    first, second = (head_weights(model, site) for site in sites)
    for w in range(4):
        for r in range(4):
            reads = {"Q": second.qk(r), "K": second.qk(r).T, "V": second.ov(r)}[kind]
            wanted = (first.ov(w) @ reads).norm() / (first.ov(w).norm() * reads.norm())
            assert float(found.values[w, 4 + r]) == pytest.approx(float(wanted), rel=1e-4)
    assert float(found.values[4:].abs().sum() + found.values[:, :4].abs().sum()) == 0.0
    writer, reader, best = found.top(1)[0]
    assert (writer[0].layer, reader[0].layer) == (0, 1)
    assert best == float(found.values.max())
    lower = composition(model, kind, baseline=3)
    assert float(lower.values.max()) < best
    with pytest.raises(RuleError, match="'Q', 'K' or 'V'"):
        composition(model, "O")


def test_singular_directions_sum_to_the_map():
    model = build("qwen2", DECODERS["qwen2"], causal=True)
    weights = head_weights(model, hook_of(model)[1][1])
    for of, whole in (("qk", weights.qk(2)), ("ov", weights.ov(2))):
        u, s, v = singular(weights, 2, of)
        assert torch.allclose((u * s) @ v.T, whole.double(), atol=1e-6)
        assert torch.allclose(u.T @ u, torch.eye(8).double(), atol=1e-8)
    with pytest.raises(RuleError, match="'qk' or 'ov'"):
        singular(weights, 0, "vo")


def test_probes_of_weights_can_be_asked_of_see():
    model = build("llama", DECODERS["llama"], causal=True)
    seen = regard.see(model, IDS, ["weights", "entropy", Relation([(5, 6)])])
    assert {"copying", "suppression", "relation", "entropy"} <= set(seen.scores)
    direct = Copying()
    with attach(model, direct, check=False):
        pass
    assert (direct.told().array() == seen.scores["copying"].array()).all()
    with pytest.raises(ValueRangeError, match="ids under 64"):
        regard.see(model, IDS, [Relation([(5, 99)])])
    with pytest.raises(CapabilityError, match="embeds no tokens"):
        regard.see(build("vit", IMAGES["vit"]), torch.randn(1, 3, 16, 16),
                   [Copying(definition="full")])  # fmt: skip
    with pytest.raises(ValueRangeError, match="some pairs"):
        Relation([])


def test_successors_are_pairs_of_single_tokens():
    class Digits:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(c) for c in text]}

    pairs = successors(Digits())
    assert (ord("1"), ord("2")) in pairs
    assert (ord("a"), ord("b")) in pairs
    assert all(b == a + 1 for a, b in pairs)
