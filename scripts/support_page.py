"""Write docs/support.md: run each architecture of the tests with and without Regard attached."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from regard.core.errors import RegardError  # noqa: E402
from regard.models import Null, attach  # noqa: E402
from regard.models.checking import first_tensor  # noqa: E402
from tests.architectures import (  # noqa: E402
    DECODERS,
    ENCODERS,
    IMAGES,
    OTHERS,
    PAIRS,
    REFUSED,
    build,
    other,
)

HEAD = """# Which models

Written by `python scripts/support_page.py`, which runs tiny random models of each architecture on
a CPU in float32, with a stage that does nothing and without. The numbers are the largest
difference of any output; decoding is 32 greedy tokens from a padded batch, through the cache.

| architecture | forward | batch of unequal lengths, padded | decoding |
|---|---|---|---|
"""


def difference(model: Any, real: torch.Tensor | None = None, **inputs: Any) -> str:
    """Largest difference of the first output, where tokens are real."""
    with torch.no_grad():
        plain = first_tensor(model(**inputs))
        with attach(model, [Null()], check=False):
            hooked = first_tensor(model(**inputs))
    assert plain is not None
    assert hooked is not None
    apart = (plain - hooked).abs()
    return f"{float((apart if real is None else apart[real.bool()]).max()):.1g}"


def decoding(model: Any, ids: torch.Tensor, real: torch.Tensor) -> str:
    """Whether 32 greedy tokens are the same."""
    how = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    plain = model.generate(ids, attention_mask=real, **how)
    with attach(model, [Null()], check=False):
        return (
            "same"
            if torch.equal(model.generate(ids, attention_mask=real, **how), plain)
            else "differs"
        )


def main() -> None:
    """Write the page."""
    logging.disable(logging.ERROR)
    torch.manual_seed(0)
    ids = torch.randint(5, 60, (2, 9))
    left = torch.ones_like(ids)
    left[0, :3] = 0
    right = left.flip(1)
    rows = []
    for name, options in DECODERS.items():
        model = build(name, options, causal=True)
        padded = difference(model, left, input_ids=ids, attention_mask=left)
        rows.append((name, difference(model, input_ids=ids), padded, decoding(model, ids, left)))
    for name, options in ENCODERS.items():
        model = build(name, options)
        padded = difference(model, right, input_ids=ids, attention_mask=right)
        rows.append((name, difference(model, input_ids=ids), padded, "-"))
    for name, options in PAIRS.items():
        model = build(name, options)
        more = {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
        padded = difference(model, attention_mask=right, **more)
        rows.append((name, difference(model, **more), padded, decoding(model, ids, right)))
    for name, options in IMAGES.items():
        rows.append(
            (
                name,
                difference(build(name, options), pixel_values=torch.randn(2, 3, 16, 16)),
                "-",
                "-",
            )
        )
    for name in OTHERS:
        model, inputs = other(name)
        rows.append((name, difference(model, **inputs), "-", "-"))
    for name, options in REFUSED.items():
        try:
            attach(build(name, options)).detach()
            rows.append((name, "attached", "-", "-"))
        except RegardError:
            rows.append((name, "refused: its own attention code", "-", "-"))
    body = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    (ROOT / "docs" / "support.md").write_text(HEAD + body, encoding="utf-8")


if __name__ == "__main__":
    main()
