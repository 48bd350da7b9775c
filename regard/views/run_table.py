"""The scores of a run as a table of text: a row for each head, a column for each score."""

from __future__ import annotations

import csv
import io
import math

import numpy as np

from regard.probes.scores import name_of_head
from regard.views.run_file import Run


def run_table(run: Run) -> bytes:
    r"""Return the scores of a run as CSV, as `Seen.to_frame().to_csv(index=False)` writes them.

    >>> run_table(Run({"sites": [], "scores": {}, "roles": []}, {}))
    b'head,layer,kind,module,role\n'
    """
    scores = [name.partition("/")[2] for name in run.arrays if name.startswith("scores/")]
    said, roles = run.manifest, [role["name"] for role in run.manifest["roles"]]
    held = io.StringIO()
    table = csv.writer(held, lineterminator="\n")
    table.writerow(["head", "layer", "kind", "module", "role", *scores])
    for row, site in enumerate(said["sites"]):
        for head in range(site["heads"] or 0):
            role = int(run.arrays["role"][row, head])
            table.writerow([
                name_of_head(site, head), site["layer"], site["kind"], site["module"],
                roles[role] if role >= 0 else "",
                *(_number(run.arrays[f"scores/{name}"][row], head) for name in scores),
            ])  # fmt: skip
    return held.getvalue().encode()


def _number(values: np.ndarray, head: int) -> float | str:
    found = float(values[head]) if head < len(values) else math.nan
    return "" if math.isnan(found) else found
