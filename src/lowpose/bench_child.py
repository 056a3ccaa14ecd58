"""`python -m lowpose.bench_child JSON`: loads one way, runs it, prints the peak of its memory in bytes.

JSON: way (fields of `benchmark.Way`), batch, threads. A process of its own, since peak memory is a process's. The peak is that of
resident memory since the program began (VmHWM) where the system tells it, else ru_maxrss; on Linux the latter also holds
what the parent process had when it started this one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def peak() -> int:
    """Bytes."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # of Unix alone

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def main() -> None:
    """Imports no more than the way needs: an exported file runs without torch."""
    from lowpose.ways import Way, crops_of, open_way

    asked = json.loads(sys.argv[1])
    way = Way(**asked["way"])
    infer, size = open_way(way, asked["threads"])
    crops = crops_of(size, asked["batch"])
    for _ in range(2):
        infer(crops)
    print(json.dumps({"peak": peak()}))


if __name__ == "__main__":
    main()
