"""`regard spread`: run a model over processes on this machine, and plan for other hardware."""

from __future__ import annotations

import ast
from typing import Annotated, Any

import typer

from regard.cli.asking import at_least
from regard.cli.options import AsJson
from regard.cli.printing import console, print_json, print_table

# Tables of owners take about 25 bytes a token (0.25 GB at 10 million): 1.7 GB at this length.
MOST_TOKENS = 2**26

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False,
    help="Attention over many devices: regard spread run, regard spread plan --devices 64",
)  # fmt: skip


@app.command()
def run(
    processes: Annotated[int, typer.Option(help="CPU processes.")] = 2,
    on: Annotated[
        str, typer.Option(help="here, or ray: the cluster of RAY_ADDRESS, or one on this machine.")
    ] = "here",
    scheme: Annotated[
        str, typer.Option(help="auto, ring, burst, gather, heads, heads_ring or star.")
    ] = "auto",
    layout: Annotated[str, typer.Option(help="zigzag, contiguous or striped.")] = "zigzag",
    tokens: Annotated[int, typer.Option(help="Tokens of the text.")] = 512,
    new: Annotated[int, typer.Option(help="Tokens to generate.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Run the model that ships over processes, and print the work of each rank."""
    from regard.core.errors import RuleError, fail
    from regard.schemes.local_processes import results
    from regard.schemes.ray_cluster import results_on_ray
    from regard.schemes.spreading import LAYOUTS, NAMES

    at_least("--processes", processes, 1)
    at_least("--tokens", tokens, 2 * processes)
    at_least("--new", new, 0)
    for flag, value, known in (
        ("--scheme", scheme, NAMES), ("--layout", layout, LAYOUTS), ("--on", on, ("here", "ray")),
    ):  # fmt: skip
        if value not in known:
            fail(RuleError, flag, repr(value), f"one of {', '.join(known)}", "leave it out")
    start = results_on_ray if on == "ray" else results
    found = start(processes, "regard.schemes.demonstration:show", scheme, layout, tokens, new)
    if as_json:
        print_json(found)
        return
    print_table(
        ("rank", "tokens", "pairs scored", "bytes sent", "messages", "bytes a new token"),
        [
            (x["rank"], x["tokens"], f"{x['pairs']:,.0f}", f"{x['sent']:,}", x["messages"],
             f"{x['sent a token']:,.0f}")
            for x in found
        ],
    )  # fmt: skip
    one = found[0]
    same = "the tokens of one process" if one["same tokens"] else "OTHER tokens than one process"
    console().print(
        f"loss {one['loss']:.6f} (one process: {one['loss alone']:.6f}), logits off by at most "
        f"{one['logits off by']:.1e}, {new} new tokens: {same}"
    )


@app.command()
def plan(
    devices: Annotated[int, typer.Option(help="Devices in total.")] = 8,
    nodes: Annotated[int, typer.Option(help="Nodes.")] = 1,
    bandwidth: Annotated[float, typer.Option(help="GB/s per device between nodes.")] = 25.0,
    link: Annotated[float, typer.Option(help="GB/s per device within a node.")] = 200.0,
    flops: Annotated[float, typer.Option(help="TFLOP/s that attention reaches.")] = 300.0,
    memory: Annotated[float, typer.Option(help="GB/s of a device's memory.")] = 3000.0,
    tokens: Annotated[int, typer.Option(help="Tokens of the text.")] = 131_072,
    rule: Annotated[str, typer.Option(help="Which pairs may attend.")] = "Causal()",
    heads: int = 32,
    kv_heads: int = 8,
    head_size: int = 128,
    backward: Annotated[bool, typer.Option(help="Count the backward too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate schemes on other hardware, for one layer.

    Work and messages are counted from the rule; times follow from the given rates.
    """
    from regard.core.errors import ValueRangeError, fail
    from regard.core.rule import Rule
    from regard.schemes.simulation import LayerShape, Machine, simulate

    for flag, value in (
        ("--devices", devices), ("--nodes", nodes), ("--heads", heads),
        ("--kv-heads", kv_heads), ("--head-size", head_size),
    ):  # fmt: skip
        at_least(flag, value, 1)
    rates = {"--bandwidth": bandwidth, "--link": link, "--flops": flops, "--memory": memory}
    for name, rate in rates.items():
        if not 0 < rate < float("inf"):
            fail(ValueRangeError, name, rate, "a number above 0", "pass what you measured")
    if devices % nodes:
        fail(
            ValueRangeError, "--nodes", f"{devices} devices in {nodes} nodes",
            "as many devices in each", "count all devices: --devices 64 --nodes 8",
        )  # fmt: skip
    at_least("--tokens", tokens, 2 * devices)
    if tokens > MOST_TOKENS:
        fail(ValueRangeError, "--tokens", tokens, f"at most {MOST_TOKENS:,}", "count a part")
    machine = Machine(devices, nodes, bandwidth, link, flops, memory)
    found = simulate(
        Rule(read_support(rule)), tokens, machine, LayerShape(heads, kv_heads, head_size),
        backward=backward,
    )  # fmt: skip
    if as_json:
        print_json([x._asdict() for x in found])
        return
    print_table(
        ("scheme", "layout", "balance", "sent", "between nodes", "held", "ms", "of ideal"),
        [
            (x.scheme, x.layout, f"{x.balance:.0%}", _bytes(x.bytes), _bytes(x.between_nodes),
             _bytes(x.held), f"{1000 * x.seconds:,.2f}", f"{x.ideal:.0%}")
            for x in found
        ],
    )  # fmt: skip
    console().print(
        f"simulated: one layer's forward{' and backward' * backward}, one row of a batch; bytes "
        "are those of the rank with most"
    )


def _bytes(x: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if x < 1000:
            return f"{x:.3g} {unit}"
        x /= 1000
    return f"{x:.3g} TB"


def read_support(text: str) -> Any:
    """Parse a support written in Python: names of the library, numbers, tuples, and & | ~."""
    from regard.core import support as home
    from regard.core.errors import RuleError, fail

    def read(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | bool):
            return node.value
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(read(x) for x in node.elts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return ~read(node.operand)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            left, right = read(node.left), read(node.right)
            return left & right if isinstance(node.op, ast.BitAnd) else left | right
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind = getattr(home, node.func.id, None)
            if isinstance(kind, type) and issubclass(kind, home.Support):
                named = {x.arg: read(x.value) for x in node.keywords if x.arg}
                return kind(*(read(x) for x in node.args), **named)
        raise ValueError(ast.unparse(node))

    try:
        made = read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        fail(
            RuleError, "--rule", f"{text!r} ({error})",
            "a support: Causal() & (Window(1024) | Sinks(4))", "quote it in the shell",
        )  # fmt: skip
    if not isinstance(made, home.Support):
        fail(RuleError, "--rule", repr(text), "a support such as Causal()", "name one")
    return made
