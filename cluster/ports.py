"""Finds free ports on this machine, for temporary servers."""

import random
import socket

# Neither the ports of Ray's workers (up to 19999) nor those that the system chooses (from 32768): Ray opens
# many connections while it starts, and one of them could take such a port before its server binds it.
_PORTS = range(20000, 32768)


def free_port() -> int:
    """A free port. Raises OSError if there is none."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port found in {_PORTS}")
