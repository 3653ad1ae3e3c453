"""Field types that several optimizers share."""

from typing import Annotated

from pydantic import Field

Beta = Annotated[float, Field(ge=0, lt=1)]
"""How much of a running mean is kept each step."""
