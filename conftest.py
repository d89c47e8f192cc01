"""For all tests, of the core and of the plugins."""

from __future__ import annotations

import os

# Before torch is imported: small tensors gain nothing from more threads, and on a busy machine
# threads that wait for each other can make a test ten times slower. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
