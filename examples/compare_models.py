"""What changed? The heads of a model before and after, ranked by how far apart they look."""

import torch

import regard
from regard.models.loading import load
from regard.views.page import write_page

text = "def add(a, b):\n    return a + b\n\n" * 12
model, tokenizer = load()
before = regard.see(model, text, tokenizer=tokenizer)
with torch.no_grad():  # a change to find: the queries of one head get colder
    model.model.layers[3].self_attn.q_proj.weight.view(8, -1, model.config.hidden_size)[5] *= 0.2
change = regard.compare(before, regard.see(model, text, tokenizer=tokenizer))
print(change.manifest["findings"][0].split(",")[0])
print(write_page(change, "out/change.html"))
