"""Papers as rows that run: the catalogue, its search, its states, its checks and its evidence."""

from regard.papers.catalogue import Row, row, rows
from regard.papers.index import like, search

__all__ = ["Row", "like", "row", "rows", "search"]
