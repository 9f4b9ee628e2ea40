"""Runs a job of many processes on this machine, on CPU devices: the same program as on a pod.

python launch/local.py --hosts 2 --devices-per-host 4 configs/tiny.py --run-dir runs/two --train.steps 40
"""

import argparse
import socket
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--devices-per-host", type=int, default=4)
    parser.add_argument("config")
    options, rest = parser.parse_known_args()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ps = []
    for k in range(options.hosts):
        c = [
            sys.executable,
            "-m",
            "paxlike",
            "train",
            options.config,
            *rest,
            "--fake-devices",
            str(options.devices_per_host),
            "--hosts.coordinator",
            f"127.0.0.1:{port}",
            "--hosts.count",
            str(options.hosts),
            "--hosts.id",
            str(k),
        ]
        ps.append(subprocess.Popen(c, start_new_session=True))
    return max(p.wait() for p in ps)


if __name__ == "__main__":
    sys.exit(main())
