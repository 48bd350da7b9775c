"""A mechanism by name, trained for a few steps, then decoded token by token."""

import torch

import regard

torch.manual_seed(0)
model = regard.model(["mha", "moh"], dim=32, heads=4, vocab=16, position="rotary")
learn = torch.optim.AdamW(model.parameters(), 3e-3)
ids = torch.arange(64).remainder(8).expand(8, -1)
for _ in range(30):
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
    learn.zero_grad()
    loss.backward()
    learn.step()
print(f"loss {loss.item():.2f} nats")
print(model.generate(ids[:1, :6], 6).tolist())
