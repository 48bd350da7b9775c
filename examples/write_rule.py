"""A rule of your own: which pairs may attend, how they match, and what will run it."""

import torch

import regard
from regard import Alibi, Causal, Dot, Rule, Sinks, SoftCap, Window

torch.manual_seed(0)
q = torch.randn(1, 8, 512, 64)  # [batch, heads, tokens, head size]
k = v = torch.randn(1, 2, 512, 64)  # fewer key heads
rule = Rule(Causal() & (Window(64) | Sinks(4)), Dot() + Alibi.for_heads(8) >> SoftCap(30))
print(regard.attend(q, k, v, rule).shape)
print(regard.plan(q, k, v, rule))
