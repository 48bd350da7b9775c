"""What does one head look at? Exact weights on demand; no whole matrix is made."""

import regard
from regard.models.loading import load

model, tokenizer = load()
text = "When Mary and John went to the store, John gave a drink to Mary."
seen = regard.see(model, text, tokenizer=tokenizer)
head = seen["L2H7"]  # looks back by one
print(head)
print(head.top_keys(query=10, count=2))
print(seen.weights(2, 7, rows=[10], columns=slice(7, 11)).round(decimals=2))
