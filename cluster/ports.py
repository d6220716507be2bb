"""Free ports of this machine, for servers that are started for a while."""

import random
import socket

# Neither Ray's workers' (up to 19999) nor the system's own choice (from 32768): such a port can go to one of
# the many connections that Ray opens while it starts, before whoever asked for it here has bound it.
_PORTS = range(20000, 32768)


def free_port() -> int:
    """Raises OSError where there is none."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port found in {_PORTS}")
