"""Which head said it? Run on a changed prompt, with one head's output put back at a time."""

from regard.circuits.patching import activation_patching, logit_difference
from regard.models.loading import load

model, tokenizer = load()
model = model.float()
told = (
    "the pass key of harbor is 73914.\nimport os, sys\n"
    "What is the pass key of harbor?\nThe pass key of harbor is "
)
clean = tokenizer(told, return_tensors="pt")["input_ids"]
corrupt = tokenizer(told.replace("73914", "28560"), return_tensors="pt")["input_ids"]
right, wrong = (tokenizer(x, add_special_tokens=False)["input_ids"][-1] for x in "72")
effect = activation_patching(model, clean, corrupt, logit_difference(right=right, wrong=wrong))
for head in effect.scores.top(3):
    print(f"{head.name} brings back {head.value:.2f} of the difference")
