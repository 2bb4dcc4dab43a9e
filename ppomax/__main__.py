"""``python -m ppomax`` is ``ppomax``."""

import sys

from ppomax.cli import main

sys.exit(main())
