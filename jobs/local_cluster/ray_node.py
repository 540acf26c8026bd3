"""`ray start` for a node that listens on loopback only: `python -m jobs.local_cluster.ray_node start --block ...`.

Ray 2.60 takes a node address of 127.0.0.1 for a mistake, puts the machine's outward address in its place, and then its servers (GCS, raylet,
agents) listen on every interface. It has a setting to stay on loopback, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which drivers and jobs heed but
with which `ray start` takes no second node. So the address is set here, and the setting is handed to what this node starts.
Source: ray/_private/services.py `get_node_ip_address`, ray/scripts/scripts.py `start`.
"""

import os

from ray._private import services
from ray.scripts.scripts import main

from jobs.local_cluster.services import LOOPBACK, STAY_ON_LOOPBACK


def loopback(address: str | None = None) -> str:
    """In the place of Ray's function that asks the network which address is this machine's."""
    return LOOPBACK


if __name__ == "__main__":
    services.get_node_ip_address = loopback
    os.environ.update([STAY_ON_LOOPBACK])
    main()
