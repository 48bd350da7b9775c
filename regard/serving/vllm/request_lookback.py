"""How much the tokens that a surveyed request generates look back at its prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from regard.core.call import Call
from regard.core.files import FileKind, read_json, reading, write_json
from regard.models.site import Site
from regard.probes.prompt_parts import spans_mass
from regard.serving.vllm.request_survey import file_name

SUFFIX = ".lookback.json"
LOOKBACK = FileKind("regard-lookback", 1, "lookback ratios of a request", "survey it again")


def read_lookback(path: str | Path) -> list[tuple[int, list[float]]]:
    """Read a file that `RequestLookback.write` wrote: (layer, ratios of its heads), by layer."""
    said = read_json(path, LOOKBACK)
    with reading(path, LOOKBACK):
        return [(int(x["layer"]), [float(h) for h in x["heads"]]) for x in said["lookback"]]


class RequestLookback:
    """Lookback ratios of one request with a prompt of so many tokens, by layer and head.

    ratio = p / (p + a), p the mean weight that a generated token gives a token of the prompt, a
    that which it gives a token generated so far, itself among them; the mean over the tokens.
    (Lookback Lens, Chuang et al. 2024)

    >>> import torch
    >>> q, k = torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 8, 4)  # every key gets the same weight
    >>> looks = RequestLookback(5); looks.look(Call.of(q, k, k)); looks.ratios()[None].tolist()
    [0.5, 0.5]
    """

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        self._sum: dict[Site, Tensor] = {}
        self._steps: dict[Site, int] = {}

    def look(self, call: Call) -> None:
        """Look at a single token q [1, h, 1, d] behind the prompt; others are left out."""
        if call.n > 1 or call.m <= self.prompt:
            return
        m, prompt = call.m, self.prompt
        mass = spans_mass(call, {"prompt": slice(0, prompt), "answer": slice(prompt, m)})
        p, a = mass["prompt"][0, :, 0] / prompt, mass["answer"][0, :, 0] / (m - prompt)
        ratio = (p / (p + a)).double()
        self._sum[call.site] = ratio + self._sum.get(call.site, 0)
        self._steps[call.site] = 1 + self._steps.get(call.site, 0)

    def ratios(self) -> dict[Any, Tensor]:
        """Return the ratios [h] of each site that was looked at."""
        return {site: total / self._steps[site] for site, total in self._sum.items()}

    def write(self, folder: str, name: str) -> Path | None:
        """Write the ratios into a folder, named for the request; None if nothing was generated."""
        found = self.ratios()
        if not found:
            return None
        path = Path(folder) / (file_name(name) + SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"layer": s.layer, "heads": x.tolist()} for s, x in found.items()]
        write_json(path, {"tokens": max(self._steps.values()), "lookback": rows}, LOOKBACK)
        return path
