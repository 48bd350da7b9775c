"""Serve the model that ships with vLLM, with a policy, and with a survey of one request.

    make vllm                                    # once: an environment with vLLM for CPUs
    .venv-vllm/bin/python examples/serve_in_vllm.py

With a server it is the same: REGARD="shrink quest keep=25%; see out=runs" vllm serve MODEL, and
`extra_body={"vllm_xargs": {"regard_see": 1}}` of the openai client.
"""

import os
from pathlib import Path

OUT = Path("runs")

# vLLM reads these when it starts: here on a CPU, offline, in this process.
os.environ |= {
    "REGARD": f"shrink quest keep=25% page=16; see out={OUT} probes=sinks,shape",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

if __name__ == "__main__":
    import inspect
    import textwrap

    from vllm import LLM, SamplingParams

    import regard
    from regard.views.run_file import Run

    folder = Path(regard.__file__).parent / "demo" / "model"
    llm = LLM(
        model=str(folder), dtype="float32", enforce_eager=True, max_model_len=2048,
        kv_cache_memory_bytes=1 << 26,
    )  # fmt: skip
    code = inspect.getsource(textwrap)
    prompts = [code[:1200], code[2000:2600]]
    asked = [
        SamplingParams(temperature=0, max_tokens=32, extra_args={"regard_see": True}),
        SamplingParams(temperature=0, max_tokens=32, extra_args={"regard_shrink": False}),
    ]
    for said in llm.generate(prompts, asked, use_tqdm=False):
        print(repr(said.outputs[0].text))
    for path in sorted(OUT.glob("*.npz")):
        print(path, *Run.load(path).manifest["findings"], sep="\n  ")
