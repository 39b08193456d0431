"""`python -m draw`, which is how torchrun starts the command."""

import sys

from draw.cli import main

if __name__ == "__main__":
    sys.exit(main())
