"""Generate with a quarter of the cache, and read what was kept and lost."""

import torch

import regard
from regard.models.loading import load

model, tokenizer = load()
prompt = "import os\nimport sys\n\n\ndef main():\n    print('hello')\n\n\n" * 8
ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
with torch.no_grad(), regard.shrink(model, "snapkv", keep=0.25) as shrunk:
    model.generate(ids, max_new_tokens=8, do_sample=False)
    print(shrunk.report(ids))
