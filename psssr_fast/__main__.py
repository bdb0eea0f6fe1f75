"""``python -m psssr_fast`` is ``psssr``."""

import sys

from psssr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
