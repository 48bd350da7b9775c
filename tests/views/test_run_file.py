"""Runs come back from files as they went, and what is no run is said to be none."""

import json
import zipfile

import numpy as np
import pytest

from regard.core.errors import RuleError
from regard.verbs import compare
from regard.views import Run, RunFileError
from regard.views.colors import ramp
from regard.views.compare import js_distance, rows_of
from tests.views.runs import seen


def test_a_run_comes_back_as_it_went(tmp_path):
    run = seen().run()
    back = Run.load(run.save(tmp_path / "heads.npz"))
    assert back.manifest == json.loads(json.dumps(run.manifest))
    assert set(back.arrays) == set(run.arrays)
    for name, x in run.arrays.items():
        assert np.array_equal(back.arrays[name], x, equal_nan=x.dtype.kind == "f")


def test_weights_of_a_kept_head_can_be_computed_again():
    import torch

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


def spoil(path, how):
    """Damage a run file in one way."""
    manifest = path.with_suffix(".json")
    if how == "another version":
        manifest.write_text(json.dumps({"format": "regard-run", "version": 99}))
    elif how == "no run":
        manifest.write_text('{"a": 1}')
    elif how == "half written":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "no JSON":
        manifest.write_text("{")
    elif how == "no arrays":
        path.unlink()
    elif how == "other arrays":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x", "y")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("another version", "version 99"),
        ("no run", "no run of Regard"),
        ("half written", "damaged"),
        ("no JSON", "damaged"),
        ("no arrays", "no such file"),
    ],
)
def test_what_is_no_run_is_said_to_be_none(tmp_path, how, says):
    path = seen().run().save(tmp_path / "heads")
    spoil(path, how)
    with pytest.raises(RunFileError, match=says):
        Run.load(path)


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
    with pytest.raises(RuleError, match=r"\.docx"):
        seen().save(tmp_path / "heads.docx")
