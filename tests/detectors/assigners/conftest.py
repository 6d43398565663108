"""The two forms in which boxes are visited: that of a CPU, and that of accelerators, run here."""

import jax
import pytest

FORMS = ("cpu", "accelerators")


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """A test that asks for it runs in both forms; both run on this machine's CPU."""
    if request.param == "accelerators":

        def default_branch(*args, default, **_):
            return default(*args)

        jax.clear_caches()  # Programs that were traced before are of the other form.
        monkeypatch.setattr(jax.lax, "platform_dependent", default_branch)
    yield request.param
    if request.param == "accelerators":
        jax.clear_caches()
