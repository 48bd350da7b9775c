"""Claims of the rows that core runs by itself: a value of a rule, or a scan, is the whole method.

They stand here and not as decorators in core only so that core need not know of papers.
"""

from __future__ import annotations

from regard.core.method import method
from regard.core.score.contents import LowRankBias
from regard.core.support.lattice import Neighborhood
from regard.core.support.tokens import SharedPrefix
from regard.core.weigh import Signed
from regard.run.scanning import scan

method("cog_attention")(Signed)
method("dpo_prefix_sharing")(SharedPrefix)
method("flashbias")(LowRankBias)
method("gna")(Neighborhood)
method("lightning_attention_2")(scan)
