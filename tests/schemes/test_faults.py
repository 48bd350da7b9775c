"""Whatever goes wrong on one rank, every other ends soon, with a sentence that names the rank."""

from pathlib import Path

import pytest

from regard.schemes.local_processes import Ended, Job, LaunchError, launch, results

HERE = Path(__file__).parent
# What rank 1 does -> what rank 0 must say: the rank, and some of the words.
OF_RANK_1 = {
    "killed_before": "gone", "killed_within": "gone", "killed_after": "gone",
    "killed_in_backward": "gone", "killed_in_backward_of_burst": "gone", "left_before": "gone",
    "killed_in_a_scan": "gone", "killed_in_decoding": "gone",
    "hangs_before": "silent", "hangs_within": "silent", "hangs_after": "silent",
    "raises_before": "gone", "raises_within": "gone", "raises_in_backward": "gone",
    "raises_in_a_rule": "gone",
    "another_rule": "another rule: Rule()",
    "another_window": "another rule: Rule(Causal() & Window(3)",
    "other_documents": "another rule", "another_dtype": "another dtype: torch.bfloat16",
    "another_length": "another lengths: Contiguous(length=10",
    "another_layout": "another lengths: ZigZag", "another_scheme": "another scheme: gather",
    "more_heads": "another shape: b=1 h=4", "another_head_size": "another shape",
    "another_batch": "another shape: b=2", "one_call_behind": "another step: call 0",
    "gradients_on_one_rank": "another scheme", "another_torch": "another torch: 2.0.0",
    "another_state": "another shape", "too_few_keys": "gone", "too_few_queries": "gone",
}  # fmt: skip
# What all ranks do -> what each must say.
OF_ALL = {
    "interrupted": "KeyboardInterrupt", "layout_of_three": "`layout`: got a layout for 3 ranks",
    "padding_of_a_part": "`real`: got", "heads_that_do_not_divide": "`keys`: got 2 heads",
    "drops_weights": "drops no weights", "bias_of_a_part": "an entry for each token",
    "one_device_alone": "reads keys of one device", "unknown_scheme": "the keys ask for rings",
}  # fmt: skip


@pytest.fixture(scope="module")
def ended() -> dict[str, list[Ended]]:
    names = [*OF_RANK_1, *OF_ALL, "a_world_of_one"]
    jobs = [
        Job(
            1 if name == "a_world_of_one" else 2, f"{HERE / 'faulty.py'}:{name}", timeout=20.0,
            message_timeout=5.0, interrupt=1.0 if name == "interrupted" else None, grace=5.0,
        )
        for name in names
    ]  # fmt: skip
    return dict(zip(names, launch(jobs), strict=True))


@pytest.mark.parametrize("name", OF_RANK_1)
def test_the_other_rank_names_the_one_that_is_wrong(
    name: str, ended: dict[str, list[Ended]]
) -> None:
    good, bad = ended[name]
    assert good.code == 1, (good, bad)
    assert good.seconds < 12, good
    assert good.last.startswith("PeerError: `rank 1`: got "), good.errors
    assert OF_RANK_1[name] in good.last, good.last
    assert bad.code != 0 or name == "left_before", bad
    # A rank that hangs is stopped by whoever started it, as torchrun does, and by nobody else.
    assert (bad.code is None) == name.startswith("hangs"), bad


@pytest.mark.parametrize("name", OF_ALL)
def test_what_is_wrong_on_every_rank_is_said_by_every_rank(
    name: str, ended: dict[str, list[Ended]]
) -> None:
    for one in ended[name]:
        assert one.code in (1, 130), one
        assert one.seconds < 12, one
        assert OF_ALL[name] in one.last, one.errors


def test_a_world_of_one_where_two_were_meant_is_noticed(ended: dict[str, list[Ended]]) -> None:
    (one,) = ended["a_world_of_one"]
    assert "a world of one process, though WORLD_SIZE=2" in one.last, one.errors


@pytest.mark.parametrize(
    ("how", "said"), [("refuses", "window.*a width above 0"), ("dies", "ended with 7")]
)
def test_the_launcher_names_the_rank_that_failed_and_not_those_that_noticed(
    how: str, said: str
) -> None:
    with pytest.raises(LaunchError, match=f"rank 1.*{said}"):
        results(3, "tests.schemes.ray_ranks:fails", how)
