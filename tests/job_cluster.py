"""A Ray cluster for tests, until standard input ends: a head that runs no trials, and one worker node.

Prints the URL of its dashboard. Its files go to the folder that is named, whose path must be short.
"""

import socket
import sys
from contextlib import closing

import ray._private.utils
from ray.cluster_utils import Cluster


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


scratch = sys.argv[1]
head = {"num_cpus": 0, "temp_dir": scratch, "include_dashboard": True, "dashboard_port": free_port()}
cluster = Cluster(head_node_args={**head, "dashboard_agent_listen_port": free_port()}, initialize_head=True)
try:
    # As ``ray start`` does: a job asks for the cluster of this folder, and there may be others on the machine.
    ray._private.utils.write_ray_address(cluster.address, scratch)
    cluster.add_node(num_cpus=2)
    sys.stdout.write(f"http://127.0.0.1:{head['dashboard_port']}\n")
    sys.stdout.flush()
    sys.stdin.read()
finally:
    cluster.shutdown()
