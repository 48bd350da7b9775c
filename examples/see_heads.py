"""What do my heads do? Findings in words, and a page to send."""

import regard
from regard.models.loading import load

model, tokenizer = load()  # the small model that ships; yours: load("Qwen/Qwen3-0.6B")
seen = regard.see(model, "def add(a, b):\n    return a + b\n\n" * 12, tokenizer=tokenizer)
print(*seen.findings(), sep="\n")
print(seen.save("out/heads.html"))
