"""`python -m vmm.cli` is `vmm-run` without an installation."""

from __future__ import annotations

import sys

from vmm.cli import main

sys.exit(main())
