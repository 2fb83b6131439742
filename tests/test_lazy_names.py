import sys
from types import ModuleType

import pytest

from segformerpp.lazy_names import getter


def test_names_are_imported_when_they_are_first_used(monkeypatch: pytest.MonkeyPatch) -> None:
    package, home = ModuleType("package"), ModuleType("home")
    home.name = "value"  # type: ignore[attr-defined]
    package.__getattr__ = getter("package", {"name": "home"})  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "package", package)
    with pytest.raises(ModuleNotFoundError, match="home"):
        _ = package.name
    monkeypatch.setitem(sys.modules, "home", home)
    assert package.name == "value"
    assert vars(package)["name"] == "value"
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'other'"):
        _ = package.other
