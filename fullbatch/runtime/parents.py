"""Processes that end with the process that started them, however that ends."""

import os
import threading
import time


def end_with_parent(parent: int, grace: float = 12.0) -> None:
    """End this process after its parent has ended; a thread looks once a second.

    A process whose parent has ended is adopted by another one, as its parent's process id shows. Unlike the end of a
    pipe, this does not depend on which other processes have inherited it.

    Args:
        parent: the process id of the parent, which may have ended already.
        grace: seconds in which this process may end by itself; by default longer than those of the peer monitor.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
