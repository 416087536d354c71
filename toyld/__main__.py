"""`python -m toyld`: the command line."""

from toyld.cli import main

main()
