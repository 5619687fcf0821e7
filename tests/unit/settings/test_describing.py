"""Settings in words."""

from __future__ import annotations

from pydantic import BaseModel

from keepstep.settings import describing
from keepstep.settings.types import Port, Reloadable


class Model(BaseModel):
    """Ways to write a type that our settings do not use just now."""

    port: Port | None = None
    other_port: Reloadable[Port | None] = None


def test_bounds_are_found_however_a_type_is_written() -> None:
    """Within a choice and within a mark."""
    for name in Model.model_fields:
        assert describing.allowed(Model, name) == "a whole number from 1 up to 65_535"
    assert [describing.is_reloadable(Model, name) for name in Model.model_fields] == [False, True]
