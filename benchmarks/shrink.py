"""What every policy keeps of the demo model's quality, at five budgets.

    python benchmarks/shrink.py --save shrink-demo      # half an hour of one core; can be resumed

Needles (asked in the prompt), keys recalled (asked for after the text was read and shrunk), bits
per byte, bytes and FLOPs of full. `--picture` draws the curves of what is already measured.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from regard.bench.shrunk_cells import read_cells
from regard.bench.shrunk_models import BUDGETS, MEASURES, Setting, curves
from regard.bench.shrunk_picture import picture
from regard.models.loading import load
from regard.policies import known, policy
from regard.policies.calibration import accepted, load_calibration

RESULTS = Path(__file__).parent / "results"
CALIBRATIONS = Path(__file__).parent / "calibrations"
# Windows and blocks that are small against the prompts.
SETTINGS = {"pod": {"window": 64}, "moa_sparse": {"sinks": 4, "block": 16}}
DRAWN = ("streaming", "h2o", "snapkv", "pyramid_kv", "ada_kv", "knorm", "random", "duo_attention",
         "quantized", "quest", "double_sparsity")  # fmt: skip


def named(name: str, model: Any) -> Any:
    """Make a policy, with its calibration of the demo model where there is one."""
    made = policy(name, **SETTINGS.get(name, {}))
    for one in accepted(made):
        path = CALIBRATIONS / f"{one}.demo"
        if path.exists():
            load_calibration([made], model, path)
            break
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", nargs="+", default=None)
    parser.add_argument("--save", default="shrink-demo", help="name of the file in results")
    parser.add_argument("--picture", type=Path, help="draw what is measured, and end")
    arguments = parser.parse_args()
    path = RESULTS / f"{arguments.save}.json"
    if arguments.picture:
        cells = [c for c in read_cells(path) if c.policy in ("full", *DRAWN)]
        print(picture(cells, arguments.picture))
        return
    names = arguments.policies or sorted({kind.name for kind in known().values()})
    model, tokenizer = load()
    model = model.float()
    made = [partial(named, name, model) for name in names]
    for cell in curves(model, tokenizer, made, BUDGETS, MEASURES, Setting(), path):
        print(cell, flush=True)


if __name__ == "__main__":
    main()
