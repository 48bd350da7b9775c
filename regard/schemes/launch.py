"""Start a few processes on this machine that find each other, and collect what they return.

For tests, demonstrations and checks. Real work is started by torchrun, accelerate, srun or Ray.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from regard.core.errors import RegardError, fail

# Seconds that the others may take to notice that one process ended with an error.
GRACE = 10.0


class LaunchError(RegardError):
    """A process that was started failed, or did not end in time."""


@dataclass(frozen=True)
class Ended:
    """How one process ended: its exit code (None: it was stopped), result, and last words."""

    rank: int
    code: int | None
    result: Any
    errors: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line that it wrote to standard error."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def launch(
    world: int, target: str, *args: Any, timeout: float = 300.0, message_timeout: float = 60.0
) -> list[Ended]:
    """Run `target(*args)` in `world` processes of one gloo group; say how each ended.

    `target` is "module:function", or "path/to/file.py:function"; arguments and results are JSON.
    A process that is not done `timeout` seconds later, or GRACE after another failed, is stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        children, began = [], time.monotonic()
        logs = [open(Path(folder) / f"errors{r}", "w+", encoding="utf-8") for r in range(world)]  # noqa: SIM115
        try:
            for rank in range(world):
                told = {
                    "target": target, "args": list(args), "rank": rank, "world": world,
                    "store": str(Path(folder) / "store"), "timeout": message_timeout,
                    "result": str(Path(folder) / f"result{rank}"),
                }  # fmt: skip
                command = [sys.executable, "-m", "regard.schemes.launch", json.dumps(told)]
                env = {**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
                children.append(subprocess.Popen(command, stderr=logs[rank], env=env))
            ends = _waited(children, began, timeout)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        found = []
        for rank, child in enumerate(children):
            logs[rank].seek(0)
            path = Path(folder) / f"result{rank}"
            result = json.loads(path.read_text("utf-8")) if path.exists() else None
            code = child.returncode if rank in ends else None
            found.append(
                Ended(rank, code, result, logs[rank].read(), ends.get(rank, timeout))
            )
            logs[rank].close()
        return found


def _waited(
    children: Sequence[subprocess.Popen[bytes]], began: float, timeout: float
) -> dict[int, float]:
    """Wait for processes; return after how many seconds each ended by itself."""
    ends: dict[int, float] = {}
    until = began + timeout
    while len(ends) < len(children) and time.monotonic() < until:
        for rank, child in enumerate(children):
            if rank not in ends and child.poll() is not None:
                ends[rank] = time.monotonic() - began
                if child.returncode:
                    until = min(until, time.monotonic() + GRACE)
        time.sleep(0.02)
    return ends


def results(world: int, target: str, *args: Any, timeout: float = 300.0) -> list[Any]:
    """Run `target(*args)` in `world` processes, and return what each returned."""
    ended = launch(world, target, *args, timeout=timeout)
    bad = next((x for x in ended if x.code not in (0, None)), None)
    bad = bad or next((x for x in ended if x.code is None), None)
    if bad is not None:
        how = "did not end in time" if bad.code is None else f"ended with {bad.code}: {bad.last}"
        fail(
            LaunchError, f"rank {bad.rank}", how, "an end without an error",
            "run it with one process first",
        )  # fmt: skip
    return [x.result for x in ended]


def function_of(target: str) -> Any:
    """Import a function by "module:function" or "path/to/file.py:function"."""
    home, _, name = target.rpartition(":")
    if home.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(home).stem, home)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(home)
    return getattr(module, name)


def _child(told: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(told["rank"]), WORLD_SIZE=str(told["world"]))
    dist.init_process_group(
        "gloo", store=dist.FileStore(told["store"], told["world"]), rank=told["rank"],
        world_size=told["world"], timeout=timedelta(seconds=told["timeout"]),
    )  # fmt: skip
    made = function_of(told["target"])(*told["args"])
    Path(told["result"]).write_text(json.dumps(made), "utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        _child(json.loads(sys.argv[1]))
    except KeyboardInterrupt:
        print("KeyboardInterrupt: this rank was told to stop", file=sys.stderr)
        sys.exit(130)
    except RegardError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.stderr.flush()
        # What hangs elsewhere must not keep this process: no clean end of the group.
        os._exit(1)

__all__ = ["GRACE", "Ended", "LaunchError", "function_of", "launch", "results"]
