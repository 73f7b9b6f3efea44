"""Children that were not started here: the first process of a container gets all that have lost their parents."""

from __future__ import annotations

import os


def reap_orphans(own: set[int]) -> None:
    """Takes the exit status of every process that has ended, but for those in `own`, so that none stays as a zombie."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # there is none at all
            return
        if ended is None or ended.si_pid in own:  # its turn comes when it has been noticed
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
