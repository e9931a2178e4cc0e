"""`python -m txproxy` is the command `txproxy`."""

import sys

from txproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
