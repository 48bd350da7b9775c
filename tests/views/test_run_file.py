"""Runs come back from files as they went, and what is no run is said to be none."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from regard.core.errors import RegardError, RuleError
from regard.core.files import FileKind, json_bytes
from regard.verbs import compare
from regard.views import Run, RunFileError
from regard.views.colors import ramp
from regard.views.compare import js_distance, rows_of
from regard.views.run_file import RUN
from tests.views.runs import seen


def test_a_run_comes_back_as_it_went(tmp_path):
    run = seen().run()
    back = Run.load(run.save(tmp_path / "heads.npz"))
    assert back.manifest == json.loads(json.dumps(run.manifest))
    assert set(back.arrays) == set(run.arrays)
    for name, x in run.arrays.items():
        assert np.array_equal(back.arrays[name], x, equal_nan=x.dtype.kind == "f")


def test_weights_of_a_kept_head_can_be_computed_again():
    from regard.models.weights import closed_weights
    from tests.views import runs

    made = runs.seen(layers=1, n=70, keep=((0, 3),))
    torch.manual_seed(70)
    q, k, v = (torch.randn(1, h, 70, 16) for h in (4, 2, 2))
    import regard

    call = regard.Call.of(1.5 * q, k, v, regard.Rule(regard.Causal()))
    wanted = closed_weights(call, "test")[0, 3].numpy()
    found = rows_of(made.run(), 0, 0, 70)
    assert np.abs(found - wanted).max() < 4e-3  # q and k are kept in half precision


def test_a_run_names_the_weights_and_the_inputs_that_it_was_made_from(tmp_path):
    """Of other weights, or of another text, a run says so, whatever it is called."""
    import regard
    from regard.models.fingerprint import fingerprint
    from tests.architectures import DECODERS, build

    model, ids = build("llama", DECODERS["llama"], causal=True), torch.arange(3, 40)[None]

    def made_from(ids):
        run = regard.see(model, ids, ["shape"], heads=0)
        saved = run.run().save(tmp_path / "a run", overwrite=True)
        return Run.load(saved).manifest["made_from"]

    first, other = made_from(ids), made_from(ids + 1)
    assert first["model"] == other["model"] == fingerprint(model)
    assert first["inputs"] != other["inputs"]
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    again = made_from(ids)
    assert again["model"] != first["model"]
    assert again["inputs"] == first["inputs"]


def test_names_may_have_dots(tmp_path):
    """`Qwen3-0.6B` is no name with a suffix: two models are two files."""
    names = ("Qwen3-0.6B", "Qwen3-0.5B")
    paths = [Run({"title": x}, {}).save(tmp_path / x) for x in names]
    assert [p.name for p in paths] == ["Qwen3-0.6B.npz", "Qwen3-0.5B.npz"]
    for name in names:
        assert Run.load(tmp_path / name).manifest["title"] == name
        assert Run.load(tmp_path / f"{name}.json").manifest["title"] == name


def test_numpy_reads_it_too(tmp_path):
    run = seen().run()
    with np.load(run.save(tmp_path / "heads")) as file:
        assert np.array_equal(file["role"], run.arrays["role"])


def test_a_run_is_one_look_even_where_the_other_file_is_of_another(tmp_path):
    """Two processes save under one name: in any order, no arrays meet another's words."""
    one, two = seen().run(), seen(n=40).run()
    path = one.save(tmp_path / "heads")
    manifest = path.with_suffix(".json").read_bytes()
    two.save(path)
    path.with_suffix(".json").write_bytes(manifest)
    back = Run.load(path)
    assert len(back.manifest["tokens"]) == 40
    assert back.arrays["entropy/0"].shape[1] == 40


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_what_the_user_wrote_is_not_overwritten(tmp_path, suffix):
    run, place = seen().run(), tmp_path / f"heads{suffix}"
    place.write_text("{}")
    with pytest.raises(RunFileError, match="overwrite=True"):
        run.save(tmp_path / "heads")
    assert place.read_text() == "{}"
    assert {p.suffix for p in tmp_path.iterdir() if not p.name.startswith(".")} == {suffix}
    run.save(tmp_path / "heads", overwrite=True)
    run.save(tmp_path / "heads")  # its own may be replaced
    assert Run.load(tmp_path / "heads").manifest["title"] == run.manifest["title"]
    place.write_bytes(place.read_bytes() + b" edited")
    with pytest.raises(RunFileError, match="overwrite=True"):
        run.save(tmp_path / "heads")


def resealed(body):
    """An archive with a seal that holds: what somebody made who knows the format."""
    body = body[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


def archive(members):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
        file.comment = b"regard-run sha256 " + b"0" * 64
    return resealed(held.getvalue())


def array(x, **changed):
    held = io.BytesIO()
    np.lib.format.write_array(held, x, allow_pickle=True)
    text = held.getvalue()
    for old, new in changed.items():
        text = text.replace(old.encode(), new.encode())
    return text


def spoil(path, how):
    """Damage a run file in one way."""
    manifest = path.with_suffix(".json").read_bytes()
    numbers = array(np.zeros(1000, np.float32))
    if how == "another version":
        old = json_bytes({}, FileKind("regard-run", 99, "", ""))
        FileKind(**vars(RUN))  # the registry has the present version again
        path.write_bytes(archive({"manifest.json": old}))
    elif how == "no run":
        path.write_bytes(archive({"manifest.json": b'{"a": 1}'}))
    elif how == "half written":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "no arrays":
        path.unlink()
    elif how == "of numpy":
        np.savez(path, x=np.zeros(3))
    elif how == "a bomb":
        path.write_bytes(archive({"manifest.json": manifest, "x.npy": bytes(1 << 21)}))
    elif how == "more than came":
        wide = numbers.replace(b"(1000,), }         ", b"(1000000000,), }   ")
        assert wide != numbers
        path.write_bytes(archive({"manifest.json": manifest, "x.npy": wide}))
    elif how == "objects":
        text = array(np.array([{}], object))
        path.write_bytes(archive({"manifest.json": manifest, "x.npy": text}))
    elif how == "without end":
        path.unlink()
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("another version", "version 99"),
        ("no run", "no regard-run"),
        ("half written", "damaged"),
        ("no arrays", "No such file"),
        ("of numpy", "did not write"),
        ("a bomb", "bytes of arrays"),
        ("more than came", "an array"),
        ("objects", "an array"),
        ("without end", "without end"),
    ],
)
def test_what_is_no_run_is_said_to_be_none(tmp_path, how, says):
    path = seen().run().save(tmp_path / "heads")
    spoil(path, how)
    with pytest.raises(RunFileError, match=says):
        Run.load(path, limit=1 << 20)


def test_the_distance_of_a_run_from_itself_is_nothing():
    run = seen().run()
    assert np.abs(compare(run, run).arrays["jsd"]).max() < 1e-6


def test_distances_are_exact_where_heads_are_kept(tmp_path):
    a = seen()
    b = seen(keep=((0, 1),))
    b.deep[0].q.mul_(0.2)
    one, two = a.run(), b.run()
    # lse belongs to q: give the changed head its own
    scores = (two.arrays["q/0"].astype(np.float32) @ two.arrays["k/0.0"].astype(np.float32).T) / 4
    causal = np.tril(np.ones_like(scores, bool))
    two.arrays["lse/0"] = np.log(np.where(causal, np.exp(scores), 0).sum(1)).astype(np.float32)
    weights = [rows_of(x, 0, 0, 90) for x in (one, two)]
    wanted = js_distance(*weights)
    assert wanted > 0.1
    paths = [x.save(tmp_path / name) for x, name in ((one, "a"), (two, "b"))]
    assert compare(*paths).arrays["jsd"][0, 1] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: seen(n=91), "91 tokens"),
        (lambda: seen(layers=3), "3 sites"),
    ],
)
def test_what_cannot_be_compared(other, says):
    with pytest.raises(RuleError, match=says):
        compare(seen(), other())


def test_the_ramp_grows_lighter_step_by_step():
    colors = ramp(np.arange(256, dtype=np.uint8)).astype(float)
    light = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -0.5).all()
    assert light[-1] - light[0] > 200


@pytest.mark.parametrize("suffix", [".html", ".npz", ".png", ".csv"])
def test_what_was_seen_is_saved_by_its_suffix(tmp_path, suffix):
    if suffix == ".png":
        pytest.importorskip("matplotlib")
    path = seen().save(tmp_path / f"deeper/heads{suffix}")
    assert path.stat().st_size > 200
    seen().save(path)  # its own is replaced
    path.write_text("the user's")
    with pytest.raises(RegardError, match="overwrite=True"):
        seen().save(path)
    assert path.read_text() == "the user's"
    assert len(list(path.parent.iterdir())) == (2 if suffix in (".npz", ".json") else 1)
    assert seen().save(path, overwrite=True).stat().st_size > 200
    with pytest.raises(RuleError, match=r"\.docx"):
        seen().save(tmp_path / "heads.docx")


@pytest.mark.parametrize("suffix", [".html", ".npz", ".json", ".png"])
def test_a_look_at_another_model_or_text_is_not_overwritten(tmp_path, suffix):
    """Nothing of the user's goes without being asked: a run, a page, a picture of another look."""
    if suffix == ".png":
        pytest.importorskip("matplotlib")
    one, other = made_from("a"), made_from("b")
    place = tmp_path / f"heads{suffix}"
    one.save(place)
    held = place.read_bytes()
    for changed in (other, seen()):
        with pytest.raises(RegardError, match="another model or other inputs"):
            changed.save(place)
    assert place.read_bytes() == held
    one.save(place)  # the same model and text
    other.save(place, overwrite=True)
    other.save(place)


def made_from(model):
    """A look at another model, or at the same: by the hash that it carries."""
    looked = seen()
    looked.made_from = {"model": model, "inputs": "text"}
    return looked


def test_a_table_is_of_the_run_beside_it(tmp_path):
    pytest.importorskip("pandas")
    made_from("a").save(tmp_path / "heads.npz")
    made_from("a").save(tmp_path / "heads.csv")
    held = (tmp_path / "heads.csv").read_bytes()
    made_from("b").save(tmp_path / "heads.csv")  # the very same numbers
    with pytest.raises(RegardError, match="another model or other inputs"):
        seen(n=80).save(tmp_path / "heads.csv")
    assert (tmp_path / "heads.csv").read_bytes() == held
    assert held == made_from("a").to_frame().to_csv(index=False).encode()
