"""``python -m foveate.runtime.cli`` runs a verb."""

import sys

from foveate.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
