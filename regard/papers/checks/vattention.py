"""64 GiB of addresses take the memory of the tokens written, and attention sees tensors."""

from __future__ import annotations

import torch

from regard.memories.reserved import Reservation, Reserved
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.run.api import attend


def resident(size: int) -> int:
    """Bytes in memory of the range of addresses of this process that is so large."""
    found = False
    with open("/proc/self/smaps", encoding="ascii") as file:
        for line in file:
            if line.startswith("Size:"):
                found = int(line.split()[1]) << 10 >= size
            elif found and line.startswith("Rss:"):
                return int(line.split()[1]) << 10
    return -1


@check(
    "vattention",
    beyond="virtual memory of a GPU, and throughput",
    same="bytes are counted, whatever is written",
)
def vattention() -> Claims:
    """64 GiB of addresses take the memory of the tokens written, and attention sees tensors."""
    layers, heads, size, group = 4, 8, 64, 1 << 16
    slots, longest = 16, 1 << 18
    rooms = Reservation(slots, longest, layers, heads, size, group=group)
    reserved = resident(rooms.reserved)
    lengths, used, same = [3000, 700, 1500], 0, True
    for n in lengths:
        slot = rooms.open()
        memories = [Reserved(rooms, layer, [slot]) for layer in range(layers)]
        for memory in memories:
            k, v = torch.randn(1, heads, n, size), torch.randn(1, heads, n, size)
            memory.extend(k[:, :, :-5], v[:, :, :-5])
            for t in range(n - 5, n):
                memory.extend(k[:, :, t : t + 1], v[:, :, t : t + 1])
            q, read = torch.randn(1, heads, 1, size), memory.read()
            same &= torch.equal(attend(q, read.k, read.v), attend(q, k, v))
            used += k.nbytes + v.nbytes
            del k, v
    grown, most = resident(rooms.reserved), len(lengths) * 2 * layers * group
    mapped, maps = rooms.nbytes, rooms.maps
    rooms.close(0)
    rooms.need(rooms.open(), 3000)
    again = rooms.maps - maps
    for slot in range(slots):
        rooms.close(slot)
    rooms.reclaim()
    left = resident(rooms.reserved)
    yield claim("Reserve 64 GB", "bytes resident after reserving 64 GiB", reserved).equals(
        0, "none"
    )
    yield claim("Reserve 64 GB", "bytes resident after writing", grown).equals(
        mapped, "bytes mapped"
    )
    yield claim("attention on the view", "equal bit for bit", same).equals(True, "a dense cache")
    yield claim("reused slot", "maps of a used slot", again).equals(0, "none")
    yield claim("wasted bytes <", "bytes mapped and not written", mapped - used).below(
        most, "slots 2 layers g"
    )
    yield claim("reused slot", "bytes resident after reclaiming", left).equals(0, "none")
