"""Libraries that come with an extra of trainctl's."""

from importlib.util import find_spec

from launcher.errors import ConfigError, Problem


def require(module: str, *, extra: str, kind: str) -> None:
    """See that a library is installed; it is not imported.

    Args:
        module: What would be imported.
        extra: The extra of trainctl that brings it.
        kind: The optimizer that needs it.

    Raises:
        ConfigError: It is not installed; the message says how to.
    """
    if find_spec(module) is None:
        message = f"{kind} needs the package {module}; install it: pip install 'trainctl[{extra}]'"
        raise ConfigError([Problem("optimizer.kind", message)])
