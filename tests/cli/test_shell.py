"""What the shell promises beside its verbs: a user's own names, completion, pictures and text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from regard.cli import main

ROOT = Path(__file__).resolve().parents[2]
OWN = """
from regard.layers.registry import get
from regard.policies.registry import policy
from regard.probes.shape import Entropy

class Mine(get("mha")):
    pass

class Look(Entropy):
    key, title = "look", "how spread"

Keep = type(policy("snapkv"))
"""


def ran(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["regard", *words])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    return left.value.code or 0, out, err


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of a user's own, where the shell is."""
    (tmp_path / "ownmodule.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop("ownmodule", None)


def test_a_layer_of_the_current_folder_is_measured(own, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    words = ["bench", "speed", "ownmodule:Mine", "--lengths", "16", "--rounds", "1", "--what",
             "forward", "--dim", "16", "--json"]  # fmt: skip
    code, out, err = ran(words, monkeypatch, capsys)
    assert code == 0, err
    assert json.loads(out)["rows"][0]["who"] == "ownmodule:Mine"


def test_a_probe_of_the_current_folder_looks(own, monkeypatch, capsys):
    words = ["see", "--probes", "ownmodule:Look", "--text", "a b c", "--heads", "0", "--json"]
    code, out, err = ran(words, monkeypatch, capsys)
    assert code == 0, err
    assert any("how spread" in x for x in json.loads(out)["findings"])


def test_names_of_ones_own_are_found_by_every_registry(own):
    from regard.bench.specs import read_spec
    from regard.layers.registry import get
    from regard.policies.registry import policy
    from regard.probes.registry import make_probes

    assert get(read_spec("ownmodule:Mine:heads=2")[0]).__name__ == "Mine"
    assert policy("ownmodule:Keep").what
    assert make_probes("ownmodule:Look")[0].key == "look"


def completed(line: str) -> list[str]:
    """What a shell is offered after a line."""
    words = line.split(" ")
    env = {
        **os.environ, "_REGARD_COMPLETE": "complete_bash", "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from regard.cli import main; main()"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("regard sh", "shrink"), ("regard shrink --po", "--policy"),
        ("regard shrink --policy snap", "snapkv"),
        ("regard shrink --policy h2o,snap", "h2o,snapkv"), ("regard bench speed gq", "gqa"),
        ("regard see --probes indu", "induction"), ("regard papers show mo", "moh"),
    ],
)  # fmt: skip
def test_tab_completes_names(line, offered):
    assert offered in completed(line)


def test_python_m_regard_is_regard():
    done = subprocess.run(
        [sys.executable, "-m", "regard", "--version"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.startswith("regard ")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A small model of language and vision, with its processor."""
    import torch
    from PIL import Image
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from regard.models.loading import DEMO

    folder = tmp_path_factory.mktemp("llava")
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    mark = tokenizer.convert_tokens_to_ids("<image>")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
             "intermediate_size": 16}  # fmt: skip
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **sizes)
    text = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=mark, vision_feature_layer=-1,
    ))  # fmt: skip
    model.save_pretrained(folder)
    side = {"height": 16, "width": 16}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side),
        tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    Image.new("RGB", (24, 24), (200, 30, 60)).save(folder / "a.png")
    return folder


def test_a_model_of_language_and_vision_is_seen(llava, tmp_path, monkeypatch, capsys):
    words = ["see", str(llava), "--image", str(llava / "a.png"), "--text", "what is this? a dog.",
             "--out", str(tmp_path), "--json"]  # fmt: skip
    code, out, err = ran(words, monkeypatch, capsys)
    assert code == 0, err
    from regard.views.run_file import Run

    run = Run.load(tmp_path / "heads.npz")
    towers = {site["tower"] for site in run.manifest["sites"]}
    assert towers == {"vision", "language"}
    said = " ".join(json.loads(out)["findings"])
    assert "language.L" in said
    assert (tmp_path / "heads.csv").read_text().count("vision.L0H0") == 1


def test_it_needs_both_and_says_so(llava, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = ran(["see", str(llava), "--text", "words"], monkeypatch, capsys)
    assert code == 0 or "--image" in err
    code, _, err = ran(["see", str(llava)], monkeypatch, capsys)
    assert code == 2
    assert "--image FILE, and --text with it" in err


def test_two_looks_are_compared_at_the_shell(tmp_path, monkeypatch, capsys):
    import regard

    for name, heads in (("one", 0), ("two", 0)):
        regard.see(inputs="a b c d e. " * 4, probes=["entropy"], heads=heads).save(
            tmp_path / name / "heads.npz"
        )
    words = ["compare", str(tmp_path / "one"), str(tmp_path / "two" / "heads.npz"), "--out",
             str(tmp_path / "change.html"), "--json"]  # fmt: skip
    code, out, err = ran(words, monkeypatch, capsys)
    assert code == 0, err
    assert "no head looks elsewhere" in json.loads(out)["findings"][0]
    assert (tmp_path / "change.html").stat().st_size > 10_000


def test_a_model_that_refuses_to_be_cast_is_taken_where_it_needs_no_cast(monkeypatch):
    """transformers marks what was read from a GGUF file, and its `float()` raises."""
    import torch

    from regard.cli import models
    from regard.models import loading

    class Marked(torch.nn.Linear):
        def float(self):
            raise ValueError("`.float()` is not supported for quantized model")

    half = torch.nn.Linear(1, 1).half()
    for made, dtype in ((Marked(1, 1), torch.float32), (half, torch.float16)):
        assert made.weight.dtype is dtype
        monkeypatch.setattr(loading, "load", lambda name, revision, made=made: (made, "words"))
        model, tokenizer = models.text_model("some", None, "none")
        assert (model, tokenizer) == (made, "words")
        assert model.weight.dtype is torch.float32
