"""Try an installed Regard as a stranger does: from an empty folder, its version, a page, a layer.

python scripts/try_package.py PYTHON    # that of the environment it is installed in
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CODE = """
import torch, regard
from importlib.resources import files
q = torch.randn(1, 2, 16, 8)
assert regard.attend(q, q, q, regard.Rule(regard.Causal())).shape == q.shape
assert regard.layer("mha", dim=16, heads=2)(torch.randn(1, 5, 16)).shape == (1, 5, 16)
assert (files("regard") / "py.typed").is_file()
print(regard.__file__)
"""
COMMANDS = (["--version"], ["see", "--text", "a b a b a b a b", "--out", "seen"], ["papers", "moh"])


def main() -> None:
    python = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        for words in (["-c", CODE], *(["-m", "regard", *x] for x in COMMANDS)):
            done = subprocess.run(
                [str(python), *words], cwd=folder, capture_output=True, text=True, check=False
            )
            said = (done.stdout.strip() or done.stderr.strip()).splitlines()
            shown = "a call and a layer" if words[0] == "-c" else " ".join(words)
            print("ok" if done.returncode == 0 else "FAILED", f"{shown}:", *said[-1:])
            if done.returncode:
                print(done.stderr)
                raise SystemExit(1)
        page = Path(folder) / "seen" / "heads.html"
        print(f"a page of {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
