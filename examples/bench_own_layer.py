"""Compare a layer of your own with attention: how fast do they learn to recall?

python examples/bench_own_layer.py
"""

from pathlib import Path

from regard.bench.findings import findings
from regard.bench.report import write_report
from regard.bench.results import gathered
from regard.bench.run_budget import read_budget
from regard.bench.sweep import carry_out_all, plan

LAYERS = ["mha", "linear", "examples.distance_attention:NearAttention"]

if __name__ == "__main__":
    folder = Path("bench-own")
    runs = plan(LAYERS, ["recall:pairs=8:length=17"], budget=read_budget("600steps"))
    for news in carry_out_all(runs, folder, workers=2):
        if news.what in ("done", "broke"):
            print(news.what, news.key, f"{news.score:.3f}", news.trace)
    results = gathered(runs, folder)
    print(*findings(results), sep="\n")
    print("open", write_report(results, folder / "report.html"))
