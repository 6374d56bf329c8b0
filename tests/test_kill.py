"""A run that is killed without warning, at any moment, keeps its word and goes on as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

from training import write_data

TRIALS = 20


def test_killed_runs_resume_bit_for_bit(tmp_path):
    """No checkpoint is unreadable or older than promised, and the end is that of a run left alone."""
    folder = write_data(tmp_path / "data")
    program = Path(__file__).with_name("killed_runs.py")
    result = subprocess.run(
        [sys.executable, program, folder, tmp_path / "runs", str(TRIALS), "1"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    trials = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(trials) == TRIALS
    assert all(trial["same"] for trial in trials)
    assert all(trial["found"] >= trial["promised"] for trial in trials)
    assert all(trial["kept"] == 2 for trial in trials)
    assert sum(trial["killed"] for trial in trials) >= TRIALS // 2  # else the moments were badly chosen
    assert len({trial["promised"] for trial in trials}) > 3  # at different moments
