"""Routing: which hosts an address goes to, by which transport, as the routers of the configuration say."""

from .chain import RouterChain
from .routes import Route, Routed, RouteDeferred, Unrouteable

__all__ = ["Route", "RouteDeferred", "Routed", "RouterChain", "Unrouteable"]
