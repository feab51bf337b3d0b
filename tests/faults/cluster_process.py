"""A Ray cluster for tests, on standard input and output: ``add``, ``kill NODE all|raylet``, ``end``."""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

import psutil
from ray.cluster_utils import Cluster

answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the output of Ray goes to stderr


def answer(**values: Any) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def kill(cluster: Cluster, node_id: str, what: str) -> None:
    """Kill a node, like a power failure, or only its raylet, as for lack of memory: the workers notice later."""
    node = next(node for node in cluster.worker_nodes if node.node_id == node_id)
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    others = raylet.children(recursive=True) if what == "all" else []
    raylet.kill()
    for process in others:
        try:
            process.kill()
        except psutil.NoSuchProcess:  # it has noticed already
            continue
    answer(time=time.time())
    cluster.remove_node(node, allow_graceful=False)


def main() -> None:
    scratch = tempfile.mkdtemp(prefix="ftae-")  # a short path, because the names of sockets are limited
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": scratch})
    try:
        answer(address=cluster.address)
        for line in sys.stdin:
            match line.split():
                case ["add"]:
                    answer(node=cluster.add_node(num_cpus=1).node_id)
                case ["kill", node_id, what]:
                    kill(cluster, node_id, what)
                case _:
                    break
    finally:
        cluster.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
main()
