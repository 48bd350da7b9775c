"""Train the small model that ships with Regard, on a CPU or a GPU; resumes where it was killed.

    python scripts/demo_model/corpus.py
    python scripts/demo_model/train.py

Writes a checkpoint every hundred steps, the mean loss of ten to `log.jsonl`, and at the
end a transformers folder (`config.json`, `model.safetensors` in bfloat16, `tokenizer.json`).
"""

import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from passages import Passages
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_models import arguments, optimizers, rate, train

from regard.models.loading import DEMO

STEPS, WARM_UP, COOL_DOWN = 1800, 60, 0.4
# From which share of the run on, how many rows of which length: always 16,384 tokens a step.
STAGES = ((0.0, 32, 512), (0.55, 16, 1024), (0.82, 8, 2048))
CONTEXT = 2048
MUON_RATE, ADAM_RATE = 0.02, 3e-3
SEED = 0


def configuration(vocabulary: int) -> LlamaConfig:
    """Four layers of eight heads, two to a key-value head."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.02,
    )


def batch(step: int, passages: Passages) -> Tensor:
    """The rows of one step `[rows, length]`: a function of the step alone, so a run can resume."""
    _, rows, length = max(stage for stage in STAGES if stage[0] * STEPS <= step)
    rng = random.Random(f"{SEED}:{step}")
    return torch.tensor([passages.row(length, rng) for _ in range(rows)])


def main() -> None:
    """Train, and write the weights."""
    asked = arguments(__doc__, "out/demo", STEPS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(str(asked.out / "tokenizer.json"))
    passages = Passages(tokenizer, np.load(asked.out / "train.npy", mmap_mode="r"))
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(configuration(tokenizer.get_vocab_size())).to(device)

    def loss_of(step: int) -> Tensor:
        tokens = batch(step, passages).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return loss

    train(
        model, optimizers(model, lambda name: "embed" not in name, MUON_RATE, ADAM_RATE), loss_of,
        partial(rate, steps=STEPS, warm_up=WARM_UP, cool_down=COOL_DOWN), asked.out, asked.stop_at,
        log_every=10, save_every=100,
    )  # fmt: skip
    for folder in (asked.out / "model", *([DEMO] if asked.ship else [])):
        export(model, tokenizer, folder)


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that transformers loads: weights in bfloat16, and a tokenizer that begins."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
