"""Train the small model that ships with Regard, on a CPU or a GPU; resumes where it was killed.

    python scripts/demo_model/corpus.py
    python scripts/demo_model/train.py

Writes a checkpoint every hundred steps, the loss of every tenth step to `log.jsonl`, and at the
end a transformers folder (`config.json`, `model.safetensors` in bfloat16, `tokenizer.json`).
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from passages import Passages
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STEPS, WARM_UP, COOL_DOWN = 1800, 60, 0.4
# From which share of the run on, how many rows of which length: always 16,384 tokens a step.
STAGES = ((0.0, 32, 512), (0.55, 16, 1024), (0.82, 8, 2048))
CONTEXT = 2048
MUON_RATE, ADAM_RATE, DECAY = 0.02, 3e-3, 0.01
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


def rate(step: int) -> float:
    """Warm up, stay, cool down to nothing: the share of the full learning rate."""
    return min(1.0, (step + 1) / WARM_UP, max(0.0, (STEPS - step) / (COOL_DOWN * STEPS)))


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    taken = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(
            inside, lr=MUON_RATE, weight_decay=DECAY, adjust_lr_fn="original", momentum=0.95
        ),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--stop-at", type=int, default=STEPS, help="stop early, to be resumed")
    arguments = parser.parse_args()
    out, device = arguments.out, "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    passages = Passages(tokenizer, np.load(out / "train.npy", mmap_mode="r"))
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(configuration(tokenizer.get_vocab_size())).to(device)
    steppers = optimizers(model)
    bases = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    checkpoint, done = out / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        for stepper, state in zip(steppers, saved["optimizers"], strict=True):
            stepper.load_state_dict(state)
        done = saved["step"]
    began = time.perf_counter()
    with (out / "log.jsonl").open("a") as log:
        for step in range(done, arguments.stop_at):
            tokens = batch(step, passages).to(device)
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            groups = [group for stepper in steppers for group in stepper.param_groups]
            for group, base in zip(groups, bases, strict=True):
                group["lr"] = base * rate(step)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            if step % 10 == 9:
                line = {
                    "step": step + 1,
                    "loss": round(loss.item(), 4),
                    "seconds": round(time.perf_counter() - began, 1),
                }
                print(json.dumps(line), file=log, flush=True)
            if step % 100 == 99 or step + 1 == arguments.stop_at:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [stepper.state_dict() for stepper in steppers],
                    "step": step + 1,
                }
                torch.save(state, checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)
    export(model, tokenizer, out / "model")


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
