"""`python -m ms_omni` is `ms-omni`."""

import sys

from .cli import main

sys.exit(main())
