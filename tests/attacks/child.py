"""What an attack runs in a fork instead of a script: python tests/attacks/child.py SCRIPT ..., as $BIGTRAIN_ATTACK says.

    {"folder": PATH, "watch": {"seen": PATH, "allowed": [PATH, ...], "memory": BYTES}}

It runs in `folder`, where `watch` (watching.py) writes to `seen` what it does that it must not, and may take so many more bytes
of addresses; `watch` may be missing.
"""

import json
import os
import resource
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.field_reader
import tests.toy  # noqa: F401  (registers the family)
from tests.attacks.watching import Watch


def main() -> None:
    how = json.loads(os.environ.pop("BIGTRAIN_ATTACK"))
    os.chdir(how["folder"])
    if "watch" in how:
        sys.addaudithook(Watch(Path(how["watch"]["seen"]), [Path(path) for path in how["watch"]["allowed"]]))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + how["watch"]["memory"],) * 2)
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
