"""What nobody reads is not made: logits of a long text take more memory than the model."""

import pytest
import torch

import regard
from regard.probes.looking import run_on

transformers = pytest.importorskip("transformers")


def model():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, vocab_size=100)
    return transformers.LlamaForCausalLM(config).eval()


def test_a_look_makes_the_logits_of_one_token():
    held, shapes = model(), []
    held.lm_head.register_forward_hook(lambda m, x, out: shapes.append(out.shape[1]))
    seen = regard.see(held, torch.randint(0, 100, (1, 50)), ["entropy", "previous_token"])
    assert shapes
    assert set(shapes) == {1}
    assert seen.scores["entropy"].values


def test_logits_are_there_where_they_are_read():
    held, ids = model(), {"input_ids": torch.randint(0, 100, (1, 9))}
    with torch.no_grad():
        assert run_on(held, ids).logits.shape[1] == 9
        last = run_on(held, ids, logits=False).logits
        assert torch.allclose(last[:, -1], run_on(held, ids).logits[:, -1], atol=1e-5)
        assert last.shape[1] == 1
