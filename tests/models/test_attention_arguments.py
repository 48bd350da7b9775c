"""What a model hands to its attention is read, harmless for a reason, or refused: by name."""

import ast
import inspect
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from regard.models import Null, attach
from regard.models.hook import UnsupportedModelError
from tests.tiny_models import SIZES_TRIED, inputs_of, tiny_config

interface = pytest.importorskip("regard.models.attention_interface")
arguments = pytest.importorskip("regard.models.attention_arguments")
transformers = pytest.importorskip("transformers")

HOME = Path(transformers.__file__).parent
INTERFACE = "ALL_ATTENTION_FUNCTIONS"
TABLE = {*arguments.READ, *arguments.HARMLESS, *arguments.REFUSED}
# How q, k and v are called where attention is written for another layout or model.
QKV = {f"{x}_states" for x in ("query", "key", "value")}
# Files whose code asks which implementation is set, how many times, and why a name that is
# neither eager's nor SDPA's (ours) is answered soundly.
ASKS = {
    "dots3_note": "hands over `indices` in place of a mask: read",
    "hy_v4": "hands over `indices` in place of a mask: read",
    "glm_moe_dsa": "hands over `indices` in place of a mask: read",
    "deepseek_v32": "hands over `indices` in place of a mask: read",
    "axk2": "hands over `indices` in place of a mask: read",
    "mistral_large4": "hands over `indices` in place of a mask: read",
    "minimax_m3_vl": "hands over `block_indices` in place of a mask: read",
    "glm5_next": "makes its mask of numbers unless SDPA is set: read as a bias",
    "qwen2_5_omni": "changes the implementation while it is built, before anything is attached",
    "gemma4": "keeps queries that SDPA's causal mask would lose; ours has positions",
    "gemma4_unified": "keeps queries that SDPA's causal mask would lose; ours has positions",
    "decision_transformer": "upcasts in eager attention alone, where its config asks for it",
    "gpt2": "upcasts in eager attention alone, where its config asks for it",
    "diffusion_gemma": "makes masks where the implementation has a function for them: ours has",
    "falcon": "calls PyTorch's attention where SDPA is set, and else writes it out: named",
    "timm_backbone": "switches kernels of timm while it is built",
    "timm_wrapper": "switches kernels of timm while it is built",
}


@cache
def scanned():
    """Names that models hand to attention, by name; and models that ask which is set."""
    names, asks = defaultdict(set), set()
    for path in sorted((HOME / "models").rglob("modeling_*.py")):
        text, model = path.read_text(encoding="utf-8"), path.parent.name
        compares = re.search(r"_attn_implementation\s*(==|!=|in |not in )", text)
        if compares is None and INTERFACE not in text:
            continue
        tree = ast.parse(text)
        for name in {*handed(tree), *read_by_eager(tree)} - QKV:
            names[name].add(model)
        for node in ast.walk(tree) if compares else ():
            if isinstance(node, ast.Compare) and mentions(node, "_attn_implementation"):
                asks.add(model)
    return names, asks


def mentions(tree, name):
    """Whether a variable or an attribute of this name is in a tree."""
    return any(
        name in (getattr(node, "id", None), getattr(node, "attr", None)) for node in ast.walk(tree)
    )


def handed(tree):
    """Names of the arguments in calls of the attention interface."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        asked = set()
        for node in ast.walk(function):
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if value is not None and mentions(value, INTERFACE):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                asked |= {ast.unparse(x) for x in targets}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and (asked or mentions(node.func, INTERFACE)):
                called = ast.unparse(node.func)
                if called in asked or called.startswith(f"{INTERFACE}["):
                    yield from (word.arg for word in node.keywords if word.arg)


def read_by_eager(tree):
    """Names of the arguments of the attention that is used where no other is asked for."""
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name.endswith("attention_forward"):
            given = function.args
            yield from (x.arg for x in given.posonlyargs + given.args + given.kwonlyargs)


def test_every_argument_of_every_class_is_in_the_table():
    names, _ = scanned()
    assert {name: models for name, models in names.items() if name not in TABLE} == {}
    assert len(names) > 15  # else the scan has lost what it looks for


def test_what_the_table_says_is_read_is_an_argument():
    known = set(inspect.signature(interface.attention).parameters)
    assert set(arguments.READ) <= known | {"output_attentions", "cache"}
    assert not set(arguments.HARMLESS) & known
    assert all(arguments.HARMLESS.values())


def test_every_class_that_asks_which_implementation_is_set_is_looked_at():
    """Under another name than eager or sdpa a model may take a road of its own."""
    assert scanned()[1] == set(ASKS)


@pytest.mark.parametrize("name", arguments.REFUSED)
def test_an_argument_that_no_rule_can_say_is_refused(name):
    q = torch.randn(1, 2, 3, 4)
    plain, _ = interface.attention(nn.Identity(), q, q, q, None, **{name: None})
    assert plain.shape == (1, 3, 2, 4)
    with pytest.raises(UnsupportedModelError, match=f"`{name}`"):
        interface.attention(nn.Identity(), q, q, q, None, **{name: torch.zeros(1, 2, 3, 1)})


class Hands(nn.Module):
    """A module of somebody's that hands over an argument of its own, and passes on the rest."""

    is_causal = False

    def forward(self, x, given, **kwargs):
        q = x[:, None]
        return interface.attention(self, q, q, q, None, new_bias=given, **kwargs)[0]


def test_an_argument_that_is_in_no_table_is_refused_where_the_model_hands_it_over():
    x = torch.randn(1, 3, 4)
    plain = Hands()(x, None)
    with pytest.raises(UnsupportedModelError, match=r"`new_bias`.*does not know"):
        Hands()(x, torch.zeros(1))
    # What a caller gave, and all attention leaves out, is no reason to refuse.
    assert torch.equal(Hands()(x, None, token_type_ids=torch.zeros(1, 3)), plain)


def eager_attention_forward(module, query, key, value, attention_mask, tilt=None, **kwargs):
    """Stand beside `PassesOn` as the attention that is replaced, which reads `tilt`."""


class PassesOn(nn.Module):
    """A module that passes on what it was given."""

    def forward(self, x, **kwargs):
        q = x[:, None]
        return interface.attention(self, q, q, q, None, **kwargs)[0]


def test_an_argument_that_the_replaced_attention_reads_is_refused():
    with pytest.raises(UnsupportedModelError, match="`tilt`"):
        PassesOn()(torch.randn(1, 3, 4), tilt=torch.zeros(1))


def choosing(kind):
    """A tiny model that chooses two keys, or two blocks of keys; inputs, and what it gives."""
    for tried in range(len(SIZES_TRIED)):
        config = tiny_config(kind.config_class, tried)
        for setting in CHOICE:
            if hasattr(config, setting):
                setattr(config, setting, 2)
        if "MiniMax" in kind.__name__:  # none of its first layers chooses
            config.layer_types = ["minimax_m3_sparse"] * config.num_hidden_layers
        torch.manual_seed(0)
        model = kind(config).eval()
        inputs = next(inputs_of(model))
        try:
            with torch.no_grad():
                return model, inputs, model(**inputs).last_hidden_state
        except RuntimeError:  # sizes that do not go together
            continue
    raise AssertionError(f"no tiny {kind.__name__} runs")


CHOICE = ("index_topk", "index_topk_blocks", "index_block_size", "index_n_heads")
CHOOSE = ["DeepseekV32Model", "GlmMoeDsaModel", "AXK2Model", "MiniMaxM3VLTextModel", "HYV4Model"]


@pytest.mark.parametrize("name", CHOOSE)
def test_keys_that_a_model_chooses_are_those_that_are_read(name):
    """A model with an indexer leaves its choice out of the mask under any name but two."""
    model, inputs, plain = choosing(getattr(transformers, name))
    chosen = []
    with torch.no_grad():
        before = interface.chosen_keys
        interface.chosen_keys = lambda *given: chosen.append(before(*given)) or chosen[-1]
        try:
            with attach(model, [Null()], check=False):
                attached = model(**inputs).last_hidden_state
        finally:
            interface.chosen_keys = before
    assert any(not bool(x.all()) for x in chosen), "nothing was left out, so nothing was tried"
    real = inputs["attention_mask"].bool()
    assert (plain - attached)[real].abs().max() < 1e-5


def test_chosen_keys_meet_every_kind_of_mask():
    q = torch.zeros(1, 2, 2, 4)
    chosen = arguments.chosen_keys(None, q, 3, torch.tensor([[[1, 2], [0, 2]]]), None)
    assert interface.with_chosen(None, chosen, 2, True).int().tolist() == [[[[0, 0, 0], [1, 0, 0]]]]
    assert torch.equal(interface.with_chosen(None, chosen, 2, False), chosen)
    seen = torch.tensor([[[[True, True, False]]]])
    assert interface.with_chosen(seen, chosen, 2, True).int().tolist() == [[[[0, 1, 0], [1, 0, 0]]]]
    added = interface.with_chosen(torch.zeros(1, 1, 2, 3), chosen, 2, True)
    assert added.isneginf().int().tolist() == [[[[1, 0, 0], [0, 1, 0]]]]
