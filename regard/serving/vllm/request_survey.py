"""A survey of one request's prompt, while it is served: what `regard.see` says of the same text.

Queries of a prompt that comes in pieces are kept until it is whole; then probes look at one call
over all of it, layer by layer, and the run file is written when the last layer was seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.models.engine import Engine
from regard.models.site import Site, Sites
from regard.probes.maps import Maps
from regard.probes.reading import Reading
from regard.probes.registry import make_probes
from regard.views.seen import Seen


class RequestSurvey:
    """Look at the prompt of one request: ids of `tokens`, at `sites`, by `probes` (names, groups).

    Only probes that read the text itself can look: those that show a model something else cannot.
    """

    def __init__(
        self, name: str, tokens: Sequence[int], words: Sequence[str], sites: Sites,
        probes: Sequence[str], model: dict[str, str],
    ) -> None:  # fmt: skip
        self.name, self.tokens, self.words, self.sites = name, tokens, words, sites
        self.model = model
        ids = torch.tensor([list(tokens)])
        reading = Reading({"input_ids": ids}, words=list(words))
        made = make_probes(list(probes))
        self.probes = [x for x in made if x.stimulus == "text"]
        self.skipped = {x.name: f"it is shown {x.stimulus}" for x in made if x.stimulus != "text"}
        for probe in self.probes:
            probe.show(reading)
            probe.begin(None, sites)
        self.maps = Maps(len(tokens))
        self._engine = Engine([*self.probes, self.maps])
        self._queries: dict[Site, list[Tensor]] = {}
        self._seen: set[Site] = set()

    @property
    def done(self) -> bool:
        """Whether every layer was seen."""
        return len(self._seen) == len(self.sites)

    def look(self, call: Call, whole_rule: Any) -> None:
        """Look at a call of the prompt, or keep its queries until the prompt is whole.

        `whole_rule` is the rule of the whole prompt at this layer.
        """
        site, n = call.site, len(self.tokens)
        if site in self._seen:
            return
        held = self._queries.setdefault(site, [])
        have = sum(q.shape[2] for q in held)
        if call.m - call.n != have:  # the request was preempted, and begins again
            held.clear()
            have = 0
        if call.m - call.n != have:
            return  # what came before was read from a cache of prefixes
        held.append(call.q.clone())
        if call.m < n:
            return
        q = torch.cat(self._queries.pop(site), 2)[:, :, :n]
        self._seen.add(site)
        self._engine.run(Call(q, call.keys, whole_rule, site=site))

    def seen(self) -> Seen:
        """Return what was seen, as `regard.see` does."""
        scores = {}
        for probe in self.probes:
            said = probe.told()
            if said.values:
                scores[said.name] = said
            probe.end()
        return Seen(
            self.model, [s for s in self.sites if s in self.maps.found], scores, self.words,
            self.maps.found, (), self.skipped,
        )  # fmt: skip

    def write(self, folder: str) -> Path:
        """Write the run file into a folder, named for the request."""
        path = Path(folder) / (file_name(self.name) + ".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.seen().save(path)
        return path


def file_name(request: str) -> str:
    """Return the name of a request, as files may be called.

    >>> file_name("cmpl-1/2")
    'cmpl-1_2'
    """
    return re.sub(r"[^\w.-]", "_", request)
