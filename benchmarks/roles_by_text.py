"""Whether heads keep their roles from one kind of text to another, on the model that ships.

    python benchmarks/roles_by_text.py --save roles-by-text

Roles are scored on the text itself (pairs by tokens, not by planted repeats), over code, prose and
tables that every Python has. For each score: the correlation over heads between two kinds of text,
and the share of heads over the role's bound in one that are over it in all.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
from typing import Any

import numpy as np
from side_by_side import save

import regard
from regard.models.loading import load
from regard.probes.position_heads import StreamingHeads
from regard.probes.roles import DuplicateToken, Induction, PreviousToken
from regard.views.seen import ROLES


def texts(length: int) -> dict[str, str]:
    """Code, prose, and tables, from the standard library."""
    import ast
    import html.entities
    from pydoc_data import topics

    prose = " ".join(topics.topics[name] for name in sorted(topics.topics)[:12])
    table = "\n".join(f"{k}\t{ord(v[0])}\t{v!r}" for k, v in list(html.entities.html5.items()))
    return {
        "code": inspect.getsource(ast)[:length],
        "prose": prose[:length],
        "tables": table[:length],
    }


def measured(tokens: int) -> list[dict[str, Any]]:
    """Scores by kind of text, and how alike they are."""
    model, tokenizer = load(None)
    probes = {
        "previous_token": PreviousToken, "induction": lambda: Induction(definition="mask"),
        "duplicate_token": lambda: DuplicateToken(definition="mask"), "streaming": StreamingHeads,
    }  # fmt: skip
    scores: dict[str, dict[str, np.ndarray]] = {}
    for kind, text in texts(6 * tokens).items():
        ids = tokenizer(text, truncation=True, max_length=tokens, return_tensors="pt")["input_ids"]
        seen = regard.see(model, ids, [make() for make in probes.values()], heads=0)
        scores[kind] = {name: seen.scores[name].array().ravel() for name in probes}
    rows = []
    for name in probes:
        columns = {kind: values[name] for kind, values in scores.items()}
        row: dict[str, Any] = {"score": name}
        for a, b in itertools.combinations(columns, 2):
            row[f"r of {a} and {b}"] = round(float(np.corrcoef(columns[a], columns[b])[0, 1]), 3)
        bound = ROLES.get(name, 0.9)
        over = [{i for i, x in enumerate(c) if x >= bound} for c in columns.values()]
        rows.append(
            {**row, "bound": bound, "heads over it in some text": len(set().union(*over)),
             "in all three": len(set.intersection(*over))}
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--save", help="name of a file in benchmarks/results/")
    options = parser.parse_args()
    found = measured(options.tokens)
    for line in found:
        print(line)
    if options.save:
        save(options.save, [], facts=found, tokens=options.tokens)
