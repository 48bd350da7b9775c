"""Gather the keys that a rank needs, then attend once."""

from __future__ import annotations

from regard.core.call import Call
from regard.core.method import method
from regard.core.partial import Partial
from regard.schemes.scheme import Scheme, partial_over, queries_of, work
from regard.schemes.sharded_keys import ShardedKeys, arrived, gathered


@method(
    "unified_token_mixing_dist_mha", call="regard.attend(q, keys, rule=rule, executor='gather')"
)
class KeyGather(Scheme):
    """Bring all keys that this rank's queries may attend to here, and attend to them at once.

    Gradients of keys and values go home and are summed there. One exchange and one kernel, for
    memory that grows with the keys that are needed: all of them, where a rule leaves none out.
    """

    name = "gather"

    def bytes_sent(self, call: Call, keys: ShardedKeys) -> list[int]:
        """Keys and values, once to each rank that needs them."""
        each = call.b * call.g * (call.d + call.e) * call.q.element_size()
        return [rows * each for rows in work(call, keys).rows_sent()]

    def held(self, call: Call, keys: ShardedKeys) -> float:
        """Bytes of all keys that the rank with most needs."""
        each = call.b * call.g * (call.d + call.e) * call.q.element_size()
        return float(max(each * sum(map(len, row)) for row in work(call, keys).needed))

    def spread(self, call: Call, keys: ShardedKeys) -> Partial:
        """Gather, attend."""
        needed, rank = work(call, keys).needed, keys.peers.rank
        k, v = gathered(keys, keys.own.dense(), needed, "gathering keys")
        i, j = queries_of(keys).positions(rank), arrived(keys, needed[rank]).sort().values
        return partial_over(call.rule, call.q, k, v, i, j, keys.real)


__all__ = ["KeyGather"]
