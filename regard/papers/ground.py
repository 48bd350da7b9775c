"""Claims of rows that core and run carry by themselves: a value, a scan, or an executor is all.

They stand here, and not as decorators, so that core and run read as if no paper existed.
"""

from __future__ import annotations

from regard.core.method import method
from regard.core.score.contents import LowRankBias
from regard.core.support.lattice import Neighborhood
from regard.core.support.tokens import SharedPrefix
from regard.core.weigh import Signed
from regard.run.chunked import Chunked
from regard.run.scanning import scan

method("chunked_attention")(Chunked)
method("cog_attention")(Signed)
method("dpo_prefix_sharing")(SharedPrefix)
method("flashbias")(LowRankBias)
method("gna")(Neighborhood)
method("lightning_attention_2")(scan)
