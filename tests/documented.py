"""What the reference describes by hand, for tests that hold it to what is written."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def documented_metrics() -> set[str]:
    """Return the names in the tables of docs/reference/metrics.md that have a meaning."""
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(\S+)` \| [^|]*\| \S[^|]+\|$", text, flags=re.MULTILINE))


def undescribed_metrics(file: Path) -> set[str]:
    """Return the metrics in a metrics.jsonl that the reference does not describe."""
    names = {name for line in file.read_text().splitlines() for name in json.loads(line)}
    assert len(names) > 5, f"{file} holds no metrics"
    return names - documented_metrics()
