"""The studio, with each attempt to reach another computer printed: ``python -m helpers.watched_studio OPTIONS``."""

from __future__ import annotations

import os
import sys
from typing import Any

OWN = ("127.", "::1", "localhost", "0.0.0.0")


def report(event: str, args: tuple[Any, ...]) -> None:
    """Prints the addresses of connections, datagrams and name look-ups, unless they are this computer's own."""
    if event in ("socket.connect", "socket.sendto"):
        place = args[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        place = args[0]
    else:
        return
    name = place[0] if isinstance(place, tuple) else place
    if isinstance(name, bytes):
        name = name.decode()
    if isinstance(name, str) and not name.startswith(OWN) and not name.startswith("/"):
        os.write(1, f"\nreached: {event} {place}\n".encode())


if __name__ == "__main__":
    sys.addaudithook(report)
    from kintsugi.apps.studio import main

    main(sys.argv[1:])
