"""What two folders of records must have in common, whoever measured them."""

import json
from pathlib import Path
from typing import Any

NOT_COMPARED = {"created", "seconds", "latency", "seal"}
"""What a record says about the clock, and about what else the machine did; the seal is of that, too."""


def contents(folder: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Return for each record the bytes of its examples, and its JSON without what depends on the clock."""
    found = {}
    for path in folder.glob("[!.]*/record.json"):
        values = {key: value for key, value in json.loads(path.read_text()).items() if key not in NOT_COMPARED}
        found[path.parent.name] = (path.with_name("examples.parquet").read_bytes(), values)
    return found
