"""`python -m regard.cli`, where the `regard` command is not on the path."""

from regard.cli import main

main()
