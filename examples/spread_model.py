"""Spread the model that ships over two processes, and compare with one.

    python examples/spread_model.py

On your own cluster: torchrun --nproc-per-node 8 your_training.py, with `regard.spread` inside.
"""

from regard.schemes.local_processes import results


def main() -> None:
    """Start two processes, and print what each did."""
    for one in results(2, "regard.schemes.demonstration:show", "ring", "zigzag", 128, 4):
        print(
            f"rank {one['rank']}: {one['tokens']} tokens, {one['pairs']:,.0f} pairs, "
            f"{one['sent']:,} bytes sent; loss {one['loss']:.5f} "
            f"(one process: {one['loss alone']:.5f}), same tokens: {one['same tokens']}"
        )


if __name__ == "__main__":
    main()
