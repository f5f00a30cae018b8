import os
from pathlib import Path

import pytest

from serving.networks.cpu import usable_cpus

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("file", "text", "cpus"),
    [
        ("cpu.max", "50000 100000", 1),
        ("cpu.max", "100000 100000", 1),
        ("cpu.max", "150000 100000", min(2, ALLOWED)),
        ("cpu.max", "99900000 100000", ALLOWED),
        ("cpu.max", "max 100000", ALLOWED),
        ("cpu.max", "nonsense", ALLOWED),
    ],
)
def test_quota_of_cgroup_v2(tmp_path: Path, file: str, text: str, cpus: int) -> None:
    (tmp_path / file).write_text(text)
    assert usable_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("100000", 1), ("-1", ALLOWED)])
def test_quota_of_cgroup_v1(tmp_path: Path, quota: str, cpus: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == cpus


def test_without_a_cgroup_all_allowed_cpus_are_usable(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == ALLOWED
