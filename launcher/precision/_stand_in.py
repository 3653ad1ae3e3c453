"""Other parameters in a module for a while: same places, same names, same sharing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def stand_ins(
    module: nn.Module, make: Callable[[nn.Parameter], nn.Parameter]
) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Put a stand-in wherever a parameter of the module is; the parameters come back in the end.

    Args:
        module: What holds the parameters.
        make: The stand-in of a parameter; called once for each, however often it is shared.

    Yields:
        Stand-ins by parameter.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for part in module.modules():
            for name, param in list(part.named_parameters(recurse=False)):
                if param not in made:
                    made[param] = make(param)
                places.append((part, name, param))
                setattr(part, name, made[param])
        yield made
    finally:
        for part, name, param in places:
            setattr(part, name, param)
