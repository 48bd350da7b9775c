"""What a test may leave behind, looked at after every test: cheap, and told by name.

Registries of names and claims, hooks on every module, function and dispatch modes of this thread,
the forwards it is in, attachments, and the switches of torch.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import module as modules

# Where a registry of classes by name stands.
REGISTRIES = {
    "regard.controls.registry": "_controls",
    "regard.layers.registry": "_layers",
    "regard.policies.registry": "_policies",
    "regard.probes.registry": "_probes",
    "regard.tasks.registry": "_tasks",
}
HOOKS = [
    found
    for name, found in vars(modules).items()
    if name.startswith("_global_") and name.endswith("_hooks") and hasattr(found, "keys")
]
SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic": (
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms,
    ),
    "fast path of attention": (
        torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled,
    ),
}  # fmt: skip


def _stands(module: str, name: str) -> bool:
    """Whether a module of the package has a class or function of this name."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return module.partition(".")[0] == "regard" and found is not None


@contextmanager
def put_back() -> Iterator[None]:
    """Take out of the registries what is registered within, as an example for readers does."""
    before = Leftovers()
    try:
        yield
    finally:
        for name in _CLEARED:
            before.strangers(name)


def seed_of(test: str) -> int:
    """Return the seed of one test: new each run, the same in every order of tests."""
    run = os.environ.get("REGARD_TEST_SEED", "0")
    return random.Random(f"{run}:{test}").getrandbits(31)


def seed_all(seed: int) -> None:
    """Seed every generator that a test may read."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


class Leftovers:
    """What is there before a test, and what is found after it that was not."""

    def __init__(self) -> None:
        self.sizes = self._sizes()
        self.modes = self._modes()
        self.switches = {name: read() for name, (read, _) in SWITCHES.items()}

    @staticmethod
    def _registries() -> Iterator[tuple[str, dict[str, Any]]]:
        for place, name in REGISTRIES.items():
            if place in sys.modules:
                yield name.strip("_"), getattr(sys.modules[place], name).kinds
        method: Any = sys.modules.get("regard.core.method")
        if method is not None:
            yield "claims", method._claims

    def _sizes(self) -> dict[str, int]:
        found = {
            name: sum(map(len, kinds.values())) if name == "claims" else len(kinds)
            for name, kinds in self._registries()
        }
        found["hooks on every module"] = sum(map(len, HOOKS))
        functional: Any = sys.modules.get("regard.models.functional")
        if functional is not None:
            found["attachments"] = len(functional._slowed)
        interface: Any = sys.modules.get("regard.models.attention_interface")
        if interface is not None:
            found["attached modules"] = len(interface.held)
        return found

    @staticmethod
    def _modes() -> tuple[int, int]:
        return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()

    def found(self) -> list[str]:
        """Name what was left, and take away what can be."""
        left: list[str] = []
        for name, size in self._sizes().items():
            if size > self.sizes.get(name, 0):
                left += self.strangers(name) if name in _CLEARED else [f"{name}: {size}"]
        left += self._of_thread()
        for name, (read, write) in SWITCHES.items():
            if read() != self.switches[name]:
                left.append(f"{name}: {read()}")
                write(self.switches[name])
        for hooks in HOOKS if any("hooks" in x for x in left) else ():
            hooks.clear()
        return left

    def strangers(self, name: str) -> list[str]:
        """Take out what no module of the package has; what an import has brought stays."""
        left: list[str] = []
        kinds = dict(self._registries()).get(name, {})
        if name != "claims":
            for key, kind in list(kinds.items()):
                if not _stands(kind.__module__, kind.__qualname__):
                    left.append(f"{name}: {key}")
                    del kinds[key]
            return left
        for key, claims in list(kinds.items()):  # claims, by row and place
            for place, claim in list(claims.items()):
                if not _stands(claim.module, claim.name):
                    left.append(f"claim of {key}: {place}")
                    del claims[place]
            if not claims:
                del kinds[key]
        return left

    def _of_thread(self) -> list[str]:
        left: list[str] = []
        forward: Any = sys.modules.get("regard.models.forward")
        if forward is not None:
            for name in ("forwards", "told"):
                stack = getattr(forward._thread, name)
                if stack:
                    left.append(f"{name} of the thread: {len(stack)}")
                    stack.clear()
        removal: Any = sys.modules.get("regard.models.removal")
        if removal is not None and removal._LOCK._is_owned():
            left.append("the lock of attaching")
            removal._LOCK.release()
        counting: Any = sys.modules.get("regard.run.counting")
        if counting is not None and (counting.COUNT.depth or counting.COUNT.records):
            left.append(f"a run that has not ended: {counting.COUNT.depth} deep")
            counting.COUNT.depth, counting.COUNT.records = 0, ()
        functional: Any = sys.modules.get("regard.models.functional")
        if functional is not None and functional._thread.busy:
            left.append("a call of attention that has not ended")
            functional._thread.busy = False
        if self._modes() != self.modes:
            left.append(f"function and dispatch modes: {self._modes()}")
            while torch._C._len_torch_function_stack() > self.modes[0]:
                torch._C._pop_torch_function_stack()
        return left


_CLEARED = (*(name.strip("_") for name in REGISTRIES.values()), "claims")
