"""Order or rank the documents of a prompt by the attention that a question gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.controls.attended import attended
from regard.core.errors import ValueRangeError, fail, shape_of
from regard.core.method import method


@dataclass(frozen=True)
class Assembled:
    """Ids [1, n] of a prompt, and the spans of each document and the question in them."""

    ids: Tensor
    documents: tuple[slice, ...]
    question: slice

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Return the inputs of a model."""
        return {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids)}


def assemble(
    tokenizer: Any, documents: Sequence[str], question: str, *, instruction: str = "",
    separator: str = "\n",
) -> Assembled:  # fmt: skip
    """Join an instruction, documents and a question in one prompt, each tokenized separately."""
    _need_texts(documents)
    start = getattr(tokenizer, "bos_token_id", None)
    ids: list[int] = [] if start is None else [int(start)]

    def add(text: str) -> slice:
        more = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        ids.extend(more)
        return slice(len(ids) - len(more), len(ids))

    add(instruction)
    spans = []
    for text in documents:
        spans.append(add(text))
        add(separator)
    asked = add(question)
    if asked.stop == asked.start:
        fail(ValueRangeError, "question", repr(question), "a question", "ask something")
    return Assembled(torch.tensor([ids]), tuple(spans), asked)


def _need_texts(documents: Any) -> None:
    good = isinstance(documents, Sequence) and not isinstance(documents, str)
    if not good or not documents or not all(isinstance(x, str) and x for x in documents):
        fail(
            ValueRangeError, "documents", shape_of(documents), "one or more texts",
            'pass documents=["...", "..."]',
        )  # fmt: skip


@dataclass(frozen=True)
class Ranking:
    """Documents from best to worst: `order` are their indices, `scores` are in the given order."""

    order: tuple[int, ...]
    scores: tuple[float, ...]
    documents: tuple[str, ...]

    @property
    def best(self) -> str:
        """Return the best document."""
        return self.documents[self.order[0]]

    def __str__(self) -> str:
        lines = (f"{self.scores[i]:8.4f}  {self.documents[i][:70]}" for i in self.order)
        return "\n".join(lines)


@method(
    "attention_sorting",
    call="from regard.controls.document_ranking import sort_documents\n"
    "sort_documents(model, documents, question, tokenizer=tokenizer).documents",
)
def sort_documents(
    model: Any, documents: Sequence[str], question: str, *, tokenizer: Any, rounds: int = 1,
    per_token: bool = False, where: Any = None, instruction: str = "", separator: str = "\n",
) -> Ranking:  # fmt: skip
    """Order documents by the attention that the last token of the prompt gives them, most last.

    A model that favors nearby tokens then has the important documents near. It repeats until the
    order is stable, up to `rounds` times; 0 keeps the order. `per_token` takes the mean over the
    tokens of a document instead of the sum. `documents` of the result are in the new order, `order`
    holds their old indices. (Attention sorting, Peysakhovich and Lerer 2023)
    """
    _need_texts(documents)
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 0:
        fail(ValueRangeError, "rounds", shape_of(rounds), "a whole number from 0", "pass rounds=1")
    order = list(range(len(documents)))
    scores = [0.0] * len(documents)
    for _ in range(rounds):
        made = assemble(
            tokenizer, [documents[i] for i in order], question, instruction=instruction,
            separator=separator,
        )  # fmt: skip
        stage = attended(model, made.inputs, slice(-1, None), where)
        row = torch.cat([x[0] for x in stage.found.values()]).mean(0)
        for i, span in zip(order, made.documents, strict=True):
            scores[i] = float(row[span].mean() if per_token else row[span].sum())
        new = sorted(order, key=lambda i: scores[i])
        if new == order:
            break
        order = new
    return Ranking(tuple(order), tuple(scores), tuple(documents[i] for i in order))


@method(
    "icr_rerank",
    call="from regard.controls.document_ranking import rerank\n"
    "rerank(model, query, documents, tokenizer=tokenizer).best",
)
def rerank(
    model: Any, query: str, documents: Sequence[str], *, tokenizer: Any, calibrate: str = "N/A",
    outliers: float = 2.0, where: Any = None, instruction: str = "", separator: str = "\n",
    lead: str = "Query: ",
) -> Ranking:  # fmt: skip
    """Rank documents by the attention of a query's tokens, minus that of a content-free query.

    It takes two forwards and generates no tokens; only rows of the query are surveyed, and memory
    is linear. In each document, tokens that score `outliers` standard deviations below the mean are
    left out.
    (In-context re-ranking, Chen et al. 2024)
    """
    found: list[Tensor] = []
    for asked in (query, calibrate):
        made = assemble(
            tokenizer, documents, lead + asked, instruction=instruction, separator=separator
        )
        # Only the tokens of the query, not of the words before it.
        many = len(tokenizer(lead, add_special_tokens=False)["input_ids"])
        rows = slice(min(made.question.start + many, made.question.stop - 1), made.question.stop)
        if asked == calibrate and found and query == calibrate:
            found.append(found[0])
        else:
            found.append(attended(model, made.inputs, rows, where).summed()[0])
    spans = made.documents
    # Documents come before the query, so their tokens are the same in both runs.
    scores = []
    for span in spans:
        tokens = found[0][span] - found[1][span]
        kept = tokens >= tokens.mean() - outliers * tokens.std(correction=0)
        scores.append(float(tokens[kept].sum()))
    order = sorted(range(len(documents)), key=lambda i: -scores[i])
    return Ranking(tuple(order), tuple(scores), tuple(documents))
