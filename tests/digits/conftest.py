"""Real MNIST, read once."""

import pytest


@pytest.fixture(scope="session")
def real(data):
    """MNIST from the folder of real inputs."""
    from toyld.digits import mnist

    return mnist(data / "mnist")
