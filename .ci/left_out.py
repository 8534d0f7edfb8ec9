#!/usr/bin/env python3
"""Print the tests that a run left out because something was missing, to run again with more installed.

`python .ci/left_out.py REPORT.xml` reads a report of `pytest --junitxml`. Slow tests and soaks are left out on purpose.
"""

import sys
from xml.etree import ElementTree


def main() -> None:
    """Print a file, or a file and a test function, a line."""
    names = set()
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        skipped = case.find("skipped")
        if skipped is None or "takes long" in (skipped.get("message") or ""):
            continue
        module, name = case.get("classname") or "", (case.get("name") or "").partition("[")[0]
        # A file that is skipped whole has no class name, and its own name as that of the test.
        file = (module or name).replace(".", "/") + ".py"
        names.add(f"{file}::{name}" if module else file)
    print("\n".join(sorted(names)))


if __name__ == "__main__":
    main()
