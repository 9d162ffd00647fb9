"""Another server with the network of `serving_peers.py`; runs in an environment of its own and prints its URL.

python serving_peer.py litserve '{"float32": "a.onnx", ..., "threads": 1, "callers": 2, "batch": 1}'
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import threading
import time
from functools import partial


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def announce(line: int, port: int, scheme: str) -> None:
    """Print the URL once something listens there."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            os.write(line, f"{scheme}://127.0.0.1:{port}\n".encode())
            return


def main() -> None:
    name, facts = sys.argv[1], json.loads(sys.argv[2])
    facts |= {"port": free_port(), "other_port": free_port()}
    line = os.dup(1)
    os.dup2(2, 1)  # what servers print is not the URL
    scheme = "http" if name == "litserve" else "grpc"
    threading.Thread(target=partial(announce, line, facts["port"], scheme), daemon=True).start()
    importlib.import_module(f"serving_peer_{name}").serve(facts)


if __name__ == "__main__":
    main()
