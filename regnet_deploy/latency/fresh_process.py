"""Measures one network in a process of its own: ``python -m regnet_deploy.latency.fresh_process``.

A process that has opened other networks has other caches, threads and memory than one that serves this network alone.
The network and the setup are JSON on stdin, the measurement is JSON on stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

from regnet_deploy.bundle.record import from_json
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.latency.measurement import Measurement
from regnet_deploy.latency.measuring import SECONDS, Setup, measure_networks
from regnet_deploy.space.network import Network

_MODULE = "regnet_deploy.latency.fresh_process"


def measure_in_fresh_process(network: Network, setup: Setup, *, seconds: float = SECONDS) -> Measurement:
    """Measure a network in a new process.

    Args:
        network: the network.
        setup: how it is run.
        seconds: measured, without the warm-up.

    Raises:
        RegnetDeployError: the process failed; the message is its own.
    """
    request = json.dumps({"network": network.to_json(), "setup": asdict(setup), "seconds": seconds})
    done = subprocess.run([sys.executable, "-m", _MODULE], input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        raise RegnetDeployError(f"the process that measures the chosen network failed: {reason[0]}")
    return from_json(json.loads(done.stdout), Measurement)


def main() -> int:
    """Measure the network of stdin; return the exit status."""
    request = json.load(sys.stdin)
    try:
        (measurement,) = measure_networks(
            [Network.from_json(request["network"])], Setup(**request["setup"]), seconds=request["seconds"]
        )
    except RegnetDeployError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    json.dump(measurement.to_json(), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
