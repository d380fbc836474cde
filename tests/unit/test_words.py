"""Words of the field: docstrings that begin with what a module does, and names that were replaced stay away."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    *(
        "_engines",
        "_modules",
        "_runners",
        "_states",
        "_utils",
        "bench",
        "bottleneck",
        "cli",
        "control",
        "lab",
        "netboot",
    ),
    *("rehearsal", "remote", "salt"),
)
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not path.is_symlink())
# File -> what it is now: one name is one thing.
REPLACED = {
    "_modules/admission.py": "_modules/drain.py",
    "_modules/delay.py": "salt/perturb/files/packet_delay.py",
    "_modules/perf.py": "_modules/telemetry.py",
    "_modules/steal.py": "salt/perturb/files/cpu_burner.py",
    "_runners/startup.py": "_runners/start_recording.py",
    "_runners/wave.py": "_runners/burst_load.py",
    "bottleneck/numbers.py": "bottleneck/json_numbers.py",
    "bottleneck/profile/overlay.py": "bottleneck/profile/local_overrides.py",
    "bottleneck/profile/placement.py": "bottleneck/profile/rank_placement.py",
    "bottleneck/profile/places.py": "bottleneck/profile/paths.py",
    "bottleneck/telemetry/live.py": "bottleneck/telemetry/cluster_state.py",
    "bottleneck/telemetry/metrics.py": "bottleneck/telemetry/prometheus_text.py",
    "bottleneck/telemetry/rates.py": "bottleneck/telemetry/recent_rates.py",
    "netboot/boot/limits.py": "netboot/boot/rate_limit.py",
    "netboot/boot/neighbours.py": "netboot/boot/kernel_tables.py",
    "netboot/boot/orders.py": "netboot/boot/command_queue.py",
    "netboot/boot/watching.py": "netboot/boot/progress_report.py",
    "salt/sampler/files/surroundings.py": "salt/sampler/files/thermal_numa.py",
}
# Names that loaders, buses and folders had.
GONE = re.compile(
    r"cluster/perf/|salt-run perf\.|admission\.(?:open|close)d?\b|wave\.send|startup\.record|cluster_perf_"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_docstring_begins_with_what_the_module_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(text)) or "").partition(" ")[0]
    assert first or not text.strip(), "a module without a docstring"
    assert first not in ("What", "Whether", "How", "Which", "Where", "Who", "When"), first
    found = GONE.search(text)
    assert found is None, f"{found[0]} is gone" if found else ""


@pytest.mark.parametrize("old", REPLACED)
def test_a_replaced_name_stays_away(old: str) -> None:
    assert not (ROOT / old).exists(), f"it is {REPLACED[old]} now"
    assert (ROOT / REPLACED[old]).is_file()
