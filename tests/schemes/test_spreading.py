"""A model over ranks is the model: losses, gradients, steps, tokens; and scans are scans."""

from pathlib import Path
from typing import Any

import pytest

from regard.schemes.launch import Job, launch

WORKER = Path(__file__).parent / "spread_models.py"
TRAINED = [
    ["ring", "zigzag", "plain"], ["burst", "zigzag", "documents"], ["gather", "striped", "window"],
    ["heads", "contiguous", "padding"], ["auto", "zigzag", "documents"],
    ["ring", "zigzag", "window"], ["ring", "contiguous", "padding"],
]  # fmt: skip
GENERATED = [["shipped", "auto", 61, 0], ["tiny", "ring", 40, 0], ["tiny", "star", 32, 5]]


@pytest.fixture(scope="module", params=[2, 4])
def ran(request: Any) -> dict[str, Any]:
    world = request.param
    jobs = {
        "trains": Job(world, f"{WORKER}:trains", (TRAINED,)),
        "generates": Job(world, f"{WORKER}:generates", (GENERATED,)),
        "scans": Job(world, f"{WORKER}:scans", ([13, 26],)),
        "videos": Job(world, f"{WORKER}:videos", ([32, 64],)),
    }
    found = dict(zip(jobs, launch(list(jobs.values())), strict=True))
    for name, ends in found.items():
        for one in ends:
            assert one.code == 0, f"{name}: rank {one.rank}: {one.errors[-3000:]}"
    return {"world": world, **found}


def test_one_step_is_that_of_one_process(ran: dict[str, Any]) -> None:
    for end in ran["trains"]:
        for asked, one in zip(TRAINED, end.result, strict=True):
            assert one["loss"] < 2e-6, (asked, one)
            assert one["logits"] < 2e-5, (asked, one)
            assert one["grads"] < 2e-4, (asked, one)
            assert one["step"] < 2e-6, (asked, one)


def test_tokens_are_those_of_one_process(ran: dict[str, Any]) -> None:
    for end in ran["generates"]:
        for asked, one in zip(GENERATED, end.result, strict=True):
            if asked[1] == "star" and ran["world"] > 2:
                continue  # an approximation where there are more than two blocks
            assert one["same"], (asked, one)
    assert len({str(end.result) for end in ran["generates"]}) == 1


def test_scans_are_those_of_one_process(ran: dict[str, Any]) -> None:
    for end in ran["scans"]:
        for one in end.result:
            assert max(one["out"], one["state"], one["grads"]) < 1e-10, one


def test_the_message_of_a_scan_does_not_grow_with_the_length(ran: dict[str, Any]) -> None:
    for end in ran["scans"]:
        for one in end.result:
            assert one["sent"] == one["back"] == one["formula"], one


def test_clips_over_ranks_are_one_video_and_send_no_more_for_more_frames(
    ran: dict[str, Any],
) -> None:
    for end in ran["videos"]:
        for one in end.result:
            assert max(one["out"], one["norm"], one["conv"]) < 1e-5, one
        assert len({one["sent"] for one in end.result}) == 1, end.result
