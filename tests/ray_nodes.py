"""A Ray cluster of nodes on the loopback address, for tests: one process that obeys lines of standard input.

python ray_nodes.py: prints the address of the cluster, then does what each line says and answers `done`: `add JSON`
starts a node with these environment variables, `remove` ends the last one as a machine that loses its power.
"""

import json
import logging
import os
import sys
import warnings

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
warnings.simplefilter("ignore")

from ray.cluster_utils import Cluster  # noqa: E402

if __name__ == "__main__":
    logging.disable(logging.INFO)
    cluster = Cluster()
    nodes = []

    def add(variables):
        # the one address at which Ray listens to this machine alone
        own = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "include_dashboard": False}
        nodes.append(cluster.add_node(**own, env_vars=variables))

    add({})
    print(cluster.address, flush=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "add":
            add(json.loads(rest))
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()
