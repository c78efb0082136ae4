"""Forks of this process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading

from tqdm.auto import tqdm


START = multiprocessing.get_context("fork")


def be_quiet() -> None:
    """In a fork that may be killed: nothing is printed, and the lock that all progress bars share is left alone."""
    sys.stdout = sys.stderr = open(os.devnull, "w")
    tqdm.set_lock(threading.RLock())
