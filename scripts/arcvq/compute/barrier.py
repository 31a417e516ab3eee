"""Keep OpenMP's threads from spinning for long at the barrier that ends every parallel loop."""

import os
import sys

# Turns of the waiting loop, about 0.2 ms: as long as a thread takes to fall asleep and wake, with room for Python's
# work between two loops. libgomp's own number, 20 ms, is longer than the scheduler's slice. Beside another
# process a thread that waits for a descheduled one would use up the time in which that one could end its part.
SPIN_COUNT = 3000
OWN_SPIN_COUNT = 300_000  # libgomp's


def spin_briefly() -> None:
    """Make threads that wait at a barrier fall asleep soon; call this before torch is imported.

    Results do not change, nor does the time on a quiet machine. Where the user has said how threads wait, that stays.
    Only GNU's OpenMP, that of torch's wheels for Linux, reads the number, and only once, when it is loaded.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
