"""These tests need torch, and run where it is: in the compression environment. Elsewhere none is collected."""

import os
from importlib.util import find_spec

collect_ignore_glob: list[str] = []
if find_spec("torch"):
    # Workers are forked: with several threads in the parent, their OpenMP would wait for threads that they lack.
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    collect_ignore_glob.append("*")
