"""Which policy, at which budget? A row for each."""

from regard.bench.shrunk_models import Setting, curves
from regard.models.loading import load

model, tokenizer = load()
setting = Setting(length=256, depths=(0.5,), draws=2, texts=2, steps=8)
policies, budgets = ["streaming", "quantized"], ["25%"]
cells = list(curves(model.float(), tokenizer, policies, budgets, ["needle", "bits"], setting))
for cell in cells:
    print(f"{cell.label}: {cell.needle} needles, KL {cell.kl:.3f}, {cell.bytes:.0%} of the bytes")
# regard.bench.shrunk_cells.advice(cell, cells[0]) says in a line what it means, speed included
