"""Every operation is tested in the form of each platform: what a GPU computes, a CPU can compute too."""

import pytest
from jax import lax


@pytest.fixture(params=["cpu", "cuda", "tpu"])
def platform(request, monkeypatch):
    """Takes the form of this platform wherever an operation has one for it."""

    def chosen(*operands, default=None, **forms):
        return forms.get(request.param, default)(*operands)

    monkeypatch.setattr(lax, "platform_dependent", chosen)
    return request.param
