"""No check breaks a rule, and each rule is broken here on purpose."""

import ast
import dataclasses
import shutil

import pytest

from regard.papers import closure as closures
from regard.papers.catalogue import row
from regard.papers.checks import checks
from regard.papers.claims import sentences
from regard.papers.closure import CHECKS, closure, hash_of_closure, path_of, split
from regard.papers.evidence_files import FOLDER, Evidence, MeasuredClaim, load
from regard.papers.lint import of_check, of_evidence, of_sentences, of_text, quoted
from regard.papers.standing import discover

KEYS = sorted(checks())
ROWS_WITH_EVIDENCE = sorted(p.stem for p in FOLDER.glob("*.json") if load(p.stem) is not None)


@pytest.mark.parametrize("key", KEYS)
def test_no_check_breaks_a_rule(key):
    assert of_check(checks()[key]) == []


@pytest.mark.parametrize("key", ROWS_WITH_EVIDENCE)
def test_no_committed_evidence_breaks_a_rule(key):
    assert of_evidence(load(key)) == []


def test_every_file_of_the_folder_is_the_check_of_a_row():
    files = {path.stem for path in path_of(CHECKS).parent.glob("*.py")} - {"__init__"}
    assert files == set(KEYS)
    assert all(not row(key).reading for key in KEYS)


GOOD = """
from regard.papers.seeding import generator, restart, seed
def helper():
    restart()
    task.batch(5, seed())
    low = 0.3  # because: chance is a sixteenth
    few = torch.rand(3) < 0.5
    return random.Random(seed()), generator(), few
def check():
    yield claim("a", "b", 1.0).below(other, "c")
    yield claim("a", "b", 1.0).below(0, "c")
    yield claim("a", "b", 1.0).within(1e-5, "c", because=FLOAT32)
    yield claim("a", "b", 1.0).above(other, "c", times=2, because="why")
    yield claim("a", "b", 3).equals(3, "c")
    assert x > 0.25  # because: a quarter
    pass
"""


@pytest.fixture
def linted(tmp_path):
    """Write a check with a line added to it, and find what is wrong."""

    def write(line=""):
        path = tmp_path / "made.py"
        path.write_text(f"{GOOD}    {line}\n")
        return of_text(path)

    return write


def test_what_is_right_is_let_pass(linted):
    assert linted() == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("torch.manual_seed(0)", "randomness comes from the runner"),
        ("torch.Generator().manual_seed(0)", "randomness comes from the runner"),
        ("torch.cuda.manual_seed_all(0)", "randomness comes from the runner"),
        ("np.random.seed(0)", "randomness comes from the runner"),
        ("random.seed(0)", "randomness comes from the runner"),
        ("rng = np.random.default_rng(0)", "randomness comes from the runner"),
        ("rng = random.Random(0)", "use seeding"),
        ("rng = random.Random()", "use seeding"),
        ("rng = torch.Generator()", "use seeding"),
        ("probe = Probe(seed=0)", "use seeding"),
        ("model = Forest(random_state=0)", "use seeding"),
        ("began = time.perf_counter()", "count operations"),
        ("began = process_time()", "count operations"),
        ("good = x < 0.3", "a comparison with a literal"),
        ("good = 0.95 < accuracy", "a comparison with a literal"),
        ('yield claim("a", "b", x).below(0.5, "c")', "a threshold without a reason"),
        ('yield claim("a", "b", x).at_most(5, "c")', "a threshold without a reason"),
        ('yield claim("a", "b", x).above(1 - 1e-3, "c")', "a threshold without a reason"),
        ('yield claim("a", "b", x).within(1e-5, "c")', "a threshold without a reason"),
        ('yield claim("a", "b", x).below(y, "c", times=2)', "a threshold without a reason"),
        ('yield claim("a", "b", x)', "a claim without a comparator"),
        ('made = claim("a", "b", x)', "a claim without a comparator"),
        ('yield claim(words, "b", x).below(y, "c")', "a claim whose quote is not written out"),
    ],
)
def test_each_rule_can_be_broken(linted, line, said):
    found = linted(line)
    assert len(found) >= 1
    assert any(said in one for one in found), found


def test_every_sentence_is_answered_narrowed_or_left_out():
    asked = sentences(row("moh").check)
    quotes = [one[:20] for one in asked]
    assert of_sentences("moh", quotes, {}, {}) == []
    (missing,) = of_sentences("moh", quotes[1:], {}, {})
    assert "neither answered nor left out" in missing
    assert asked[0] in missing
    assert of_sentences("moh", quotes[1:], {}, {quotes[0]: "no time to train"}) == []
    (empty,) = of_sentences("moh", quotes, {quotes[0]: "hm"}, {})
    assert "no reason" in empty
    wrong = of_sentences("moh", quotes[1:], {quotes[0]: "asked less"}, {})
    assert any("nothing answers what is left" in one for one in wrong)
    (stranger,) = of_sentences("moh", [*quotes, "no such words"], {}, {})
    assert "in 0 sentences" in stranger


def test_a_check_stands_in_the_file_of_its_row():
    made = dataclasses.replace(checks()["moh"], key="mqa")
    assert any("one file for each row, named by its key" in one for one in of_check(made))


def test_quotes_are_read_from_the_text():
    tree = ast.parse('yield claim("a b", "c", 1).below(2, "d")\nclaim("e", "f", 1)')
    assert quoted(tree) == ["a b", "e"]


def evidence(**changed) -> Evidence:
    claims = [
        MeasuredClaim("s", "x", "below", "y", "", "every seed", False, True, *numbers)
        for numbers in [([0.1, 0.2, 0.3, 0.4, 0.5], [1.0] * 5, [1.0] * 5, [0.5] * 5)]
    ]
    made = Evidence(
        key="moh", claims=claims, narrowed={}, left_out={}, unanswered=[], beyond="", pinned=[],
        same="", seeds=[0, 1, 2, 3, 4], long=False, seconds=1.0, cpu_seconds=1.0, date="2026-01-01",
        machine={}, versions={}, commit="0123456789ab", check_hash="", method_hash="",
    )  # fmt: skip
    return dataclasses.replace(made, **changed)


def test_evidence_is_of_a_clean_tree_five_seeds_and_numbers_that_move():
    assert of_evidence(evidence()) == []
    still = dataclasses.replace(evidence().claims[0], measured=[0.25 + 1e-3] * 5)
    for changed, said in (
        ({"commit": "0123456789ab+"}, "dirty"),
        ({"commit": ""}, "dirty"),
        ({"pinned": ["regard.papers.checks.moh: 0"]}, "pinned"),
        ({"seeds": [0]}, "few seeds"),
        ({"unanswered": ["one"]}, "unanswered"),
        ({"claims": [still]}, "every seed gives the same numbers"),
    ):
        (found,) = of_evidence(evidence(**changed))
        assert said in found
    assert of_evidence(evidence(claims=[still], same="nothing is drawn")) == []


def test_a_hash_covers_everything_that_a_check_can_reach(tmp_path, monkeypatch):
    """A change of one word anywhere in the closure, and nowhere else, changes the hash."""
    name = f"{CHECKS}.agent_attention"
    reached = closure([name])
    assert {name, "regard.layers.agents", "regard.papers.shared.linear_cost"} <= reached
    assert "regard.run.plan" in reached  # a layer attends through it, modules away
    assert "regard.papers.check_runner" not in reached
    assert "regard.controls" not in {one.rpartition(".")[0] for one in reached}
    own, code = split(reached)
    assert own == {one for one in reached if one.startswith("regard.papers")}
    before = hash_of_closure(code)
    shutil.copytree(closures.ROOT, tmp_path / "regard", ignore=shutil.ignore_patterns("demo"))
    monkeypatch.setattr(closures, "ROOT", tmp_path / "regard")
    closures.forget()
    try:
        assert hash_of_closure(split(closure([name]))[1]) == before
        far = tmp_path / "regard" / "run" / "plan.py"
        far.write_text(far.read_text() + "\nANOTHER = 1\n")
        closures.forget()
        assert hash_of_closure(split(closure([name]))[1]) != before
    finally:
        monkeypatch.undo()
        closures.forget()


@pytest.mark.parametrize("key", KEYS)
def test_the_closure_of_a_check_has_every_claim_of_its_row(key):
    from regard.core.method import claims_of
    from regard.papers import standing

    discover()
    modules = {claim.module for claim in claims_of(key)}
    assert modules
    names = (checks()[key].function.__module__, *modules)
    assert modules <= closure(names) | {"regard.papers.ground"}
    assert standing.hashes(key)[1]
