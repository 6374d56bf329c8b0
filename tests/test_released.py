"""Every released checkpoint from where it really is; only on request, for a machine with internet (about 6.5 GB).

    python -m pytest -m network

A hash that is seen for the first time is recorded in ``src/mixerzoo/assets/checksums.json``; commit it. From then on it
is compared.
"""

import json
import subprocess
import sys

import pytest
from conftest import REAL_ENVIRONMENT, ROOT

from mixerzoo.zoo import WEIGHTS

pytestmark = pytest.mark.network

CHECKSUMS_FILE = ROOT / "src" / "mixerzoo" / "assets" / "checksums.json"  # the checkout's, also if it is installed
SOURCES = [(row.name, "hub") for row in WEIGHTS.values() if row.hub_id]
SOURCES += [(row.name, "npz") for row in WEIGHTS.values() if row.npz_url]


def verify(name, source):
    command = [sys.executable, "-m", "mixerzoo", "verify", name, "--source", source, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env=REAL_ENVIRONMENT, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_a_released_checkpoint_loads_and_computes_what_it_should(name, source):
    found = verify(name, source)
    assert found["problem"] is None
    assert found["act"] == WEIGHTS[name].act
    origin, digest = found["file"]["origin"], found["file"]["origin_sha256"]
    known = json.loads(CHECKSUMS_FILE.read_text())
    if origin not in known:
        CHECKSUMS_FILE.write_text(json.dumps(known | {origin: digest}, indent=2) + "\n")
    assert json.loads(CHECKSUMS_FILE.read_text())[origin] == digest


HUB_AND_NPZ = [row.name for row in WEIGHTS.values() if row.hub_id and row.npz_url]


@pytest.mark.parametrize("name", HUB_AND_NPZ)
def test_the_hubs_copy_is_the_official_file(name):
    """The same weights under the Hub's (partly wrong) labels and in Google's bucket, to the last digit."""
    code = f"""
import torch, mixerzoo
a, b = (mixerzoo.create_model({name!r}, pretrained=True, source=s).state_dict() for s in ("hub", "npz"))
assert a.keys() == b.keys()
print([n for n in a if not torch.equal(a[n], b[n])])
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=REAL_ENVIRONMENT, timeout=3600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
