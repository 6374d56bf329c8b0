"""Fixtures. The Hub client is pointed at a server on this machine before anything imports it; no test leaves it."""

import os
import tempfile

from file_server import FileServer
from hub_server import HubServer

REAL_ENVIRONMENT = dict(os.environ)
"""What the tests marked ``network`` run in."""

_HUB = HubServer()
_HF_HOME = tempfile.TemporaryDirectory(prefix="mixerzoo-tests-")
os.environ |= {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": _HF_HOME.name,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HTTPS_PROXY": "http://127.0.0.1:9",  # nobody listens there: the outside world is unreachable at once
    "NO_PROXY": "127.0.0.1,localhost",
    "TRITON_INTERPRET": "1",  # kernels run on the CPU; a card has the GPU suite
    "XDG_CACHE_HOME": f"{_HF_HOME.name}/cache",  # compiled code
    "OMP_NUM_THREADS": "1",  # the models are small: more threads only wait for each other
}
for _name in ("HF_HUB_OFFLINE", "https_proxy", "HF_TOKEN"):
    os.environ.pop(_name, None)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_unconfigure():
    _HUB.close()
    _HF_HOME.cleanup()


@pytest.fixture
def hub():
    _HUB.repositories.clear()
    yield _HUB
    _HUB.repositories.clear()


@pytest.fixture
def files():
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def root():
    return ROOT


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def shared_data():
    """Real data that lies beside the checkout on some machines; never part of the repository."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real data is not on this machine ({path} is absent)")
    return path
