"""The programs in examples/ run."""

import json
import subprocess
import sys

from training import write_data


def test_resolution_evaluates_every_scheme_of_a_size(root, tmp_path):
    data = write_data(tmp_path / "data")
    program = root / "examples" / "resolution.py"
    command = [sys.executable, program, "--data", data, "--out", tmp_path / "out", "--no-train", "--only", "64"]
    result = subprocess.run([*command, "--workers", "0"], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["img_size"], row["resize"]) for row in rows] == [(64, "interpolate"), (64, "tile")]
    assert rows[1]["tokens_mlp_dim"] == 4 * rows[0]["tokens_mlp_dim"]
    assert all(0 <= row["top1_before"] <= 1 for row in rows)
