"""What a raylet of an own cluster runs in the place of Ray's two agents, which trials do without.

One sets up runtime environments, of which such a cluster has none; the other serves a dashboard. Each takes a second of
a processor to start, and the raylet answers nobody until both have told it their ports. This one tells it that there
are none. It imports little, since it is on the way to every search.
"""

import os
import sys
from pathlib import Path

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
NONE = "-1"  # Ray's word for a service that is not in use


def main() -> None:
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    for name in PORTS:
        file = Path(given["session-dir"]) / f"{name}_{given['node-id']}"
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_text(NONE)
        partial.rename(file)
    sys.stdin.read()  # as long as the raylet lives, which ends if one of its agents does


if __name__ == "__main__":
    main()
