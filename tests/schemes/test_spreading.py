"""A model over ranks is the model: losses, gradients, steps, tokens; and scans are scans."""

from pathlib import Path
from typing import Any

import pytest

from regard.schemes.local_processes import Job, function_of, launch
from regard.schemes.local_ranks import on_ranks

WORKER = Path(__file__).parent / "spread_models.py"
TRAINED = [
    ["ring", "zigzag", "plain"], ["burst", "zigzag", "documents"], ["gather", "striped", "window"],
    ["heads", "contiguous", "padding"], ["auto", "zigzag", "documents"],
    ["ring", "zigzag", "window"], ["ring", "contiguous", "padding"],
]  # fmt: skip
GENERATED = [["shipped", "auto", 61, 0], ["tiny", "ring", 40, 0], ["tiny", "star", 32, 5]]


WORK: dict[str, tuple[Any, ...]] = {
    "trains": (TRAINED,), "generates": (GENERATED,), "scans": ([13, 26],), "videos": ([32, 64],),
}  # fmt: skip


@pytest.fixture(scope="module", params=["2 threads", "4 threads", "2 processes"])
def ran(request: Any) -> dict[str, Any]:
    """What each rank found, by kind of work."""
    world, how = int(request.param[0]), request.param[2:]
    if how == "threads":
        found = {}
        for name, args in WORK.items():
            work = function_of(f"{WORKER}:{name}")
            found[name] = on_ranks(world, lambda peers, run=work, a=args: run(*a, peers))
        return {"world": world, **found}
    ended = launch([Job(world, f"{WORKER}:{name}", args) for name, args in WORK.items()])
    for name, ends in zip(WORK, ended, strict=True):
        for one in ends:
            assert one.code == 0, f"{name}: rank {one.rank}: {one.errors[-3000:]}"
    results = [[one.result for one in ends] for ends in ended]
    return {"world": world, **dict(zip(WORK, results, strict=True))}


def test_one_step_is_that_of_one_process(ran: dict[str, Any]) -> None:
    for end in ran["trains"]:
        for asked, one in zip(TRAINED, end, strict=True):
            assert one["loss"] < 2e-6, (asked, one)
            assert one["logits"] < 2e-5, (asked, one)
            assert one["grads"] < 2e-4, (asked, one)
            assert one["step"] < 2e-6, (asked, one)


def test_tokens_are_those_of_one_process(ran: dict[str, Any]) -> None:
    for end in ran["generates"]:
        for asked, one in zip(GENERATED, end, strict=True):
            if asked[1] == "star" and ran["world"] > 2:
                continue  # an approximation where there are more than two blocks
            assert one["same"], (asked, one)
    assert len({str(end) for end in ran["generates"]}) == 1


def test_scans_are_those_of_one_process(ran: dict[str, Any]) -> None:
    for end in ran["scans"]:
        for one in end:
            assert max(one["out"], one["state"], one["grads"]) < 1e-10, one


def test_the_message_of_a_scan_does_not_grow_with_the_length(ran: dict[str, Any]) -> None:
    for end in ran["scans"]:
        for one in end:
            assert one["sent"] == one["back"] == one["formula"], one


def test_clips_over_ranks_are_one_video_and_send_no_more_for_more_frames(
    ran: dict[str, Any],
) -> None:
    for end in ran["videos"]:
        for one in end:
            assert max(one["out"], one["norm"], one["conv"]) < 1e-5, one
        assert len({one["sent"] for one in end}) == 1, end
