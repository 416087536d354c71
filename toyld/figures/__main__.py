"""`python -m toyld.figures` is `toyld figures`: the same parser, the same function, the same exit codes."""

import sys

from toyld.cli import main

if __name__ == "__main__":
    main(["figures", *sys.argv[1:]])
