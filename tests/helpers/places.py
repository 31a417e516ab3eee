"""Where the tests find the project's files."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
HELPERS = TESTS / "helpers"
# For processes that a test starts: this checkout's packages, and the tests' helpers.
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "scripts", HELPERS)))
