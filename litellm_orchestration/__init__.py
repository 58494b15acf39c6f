"""What a LiteLLM config.yaml names: `callback`, `authenticate`, `demo`; and `get_gateway` for Python programs.

Each is made when it is first asked for, so importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

from litellm_orchestration._namespace import verify_our_packages
from litellm_orchestration._version import __version__

if TYPE_CHECKING:
    from core.llm_orchestration import get_gateway
    from plugins.adapters.demo import DemoProvider
    from plugins.authentication import authenticate
    from plugins.hooks import Orchestration

    callback: Orchestration
    demo: DemoProvider

__all__ = ["__version__", "authenticate", "callback", "demo", "get_gateway"]

verify_our_packages()


def __getattr__(name: str) -> Any:
    if name not in _MAKE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _MAKE[name]()
    globals()[name] = value
    return value


def _callback() -> Any:
    from core import memory, process

    if process.is_a_proxys():
        memory.spare_collections()  # before our imports, for each collection during them would walk LiteLLM's
    from plugins.wiring import wiring

    return wiring().callback


def _authenticate() -> Any:
    from plugins.authentication import authenticate

    return authenticate


def _demo() -> Any:
    from plugins.adapters.demo import DemoProvider

    return DemoProvider()


def _get_gateway() -> Any:
    from core.llm_orchestration import get_gateway

    return get_gateway


_MAKE = {"callback": _callback, "authenticate": _authenticate, "demo": _demo, "get_gateway": _get_gateway}
