"""Make a pretrained model cheaper: policies, by name or by class.

`regard.shrink(model, "snapkv", keep=0.25)` applies one; `known()` lists them.
"""

from regard.policies.base import Policy, Step
from regard.policies.budget import Budget
from regard.policies.calibration import calibrate
from regard.policies.registry import known, make_policies, policy, register

__all__ = ["Budget", "Policy", "Step", "calibrate", "known", "make_policies", "policy", "register"]
