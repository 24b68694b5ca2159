"""``python -m fastdiff`` is the ``fastdiff`` command."""

import sys

from fastdiff.cli import main

sys.exit(main())
