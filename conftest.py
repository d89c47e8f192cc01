"""For all tests, of the core and of the plugins."""

from __future__ import annotations

import os
import tempfile

# Before torch is imported: small tensors gain nothing from more threads, and on a busy machine
# threads that wait for each other can make a test ten times slower. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is remembered of files is none of a test's business beyond the tests.
_CACHE = tempfile.TemporaryDirectory(prefix="backdoorkit-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
