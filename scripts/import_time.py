"""Measure what Regard adds to `import torch`: nothing until used, then every public name.

Run with `python scripts/import_time.py`. Fresh interpreters, best of several; compile caches warm.
"""

from __future__ import annotations

import subprocess
import sys

ROUNDS = 7
TIMED = """
import time, torch, numpy
start = time.perf_counter()
{code}
print(time.perf_counter() - start)
"""
CASES = {
    "import regard": "import regard",
    "regard.Rule, regard.attend": "import regard; regard.Rule, regard.attend",
    "every public name": "import regard\nfor name in regard.__all__: getattr(regard, name)",
}


def seconds(code: str) -> float:
    """Fastest of several fresh interpreters, in seconds beyond `import torch`."""
    command = [sys.executable, "-c", TIMED.format(code=code)]
    runs = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for _ in range(ROUNDS)
    )
    return min(float(said) for said in runs)


if __name__ == "__main__":
    for said, code in CASES.items():
        print(f"{said:<30}{seconds(code) * 1000:8.1f} ms beyond torch and numpy")
