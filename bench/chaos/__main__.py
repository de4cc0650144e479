"""`python -m bench.chaos`."""

import sys

from .command import main

sys.exit(main())
