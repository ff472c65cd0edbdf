"""Routing: which hosts an address goes to, by which transport, as the routers of the configuration say.

Layer: orchestration (trio).  Spec: Exim 4 specification 3.8 to 3.12, 15, 17, 20; dane-tls R8, R12, R14, R15.
From the outside in:

    chain      tries the routers in order, keeps what they decide by domain: `RouterChain.route`, `cached_or_none`
    router     one router: preconditions, then a driver: dnslookup or manualroute
    search     runs a host search (policy.mx decides) against whatever answers DNS questions
    expansion  the seam to the expansion language: texts, lists and patterns of the options, compiled once
    routes     what comes out: `Routed`, `Unrouteable`, `RouteDeferred`

    address -> chain -> router -> search -> policy.mx.HostSearch -> questions -> net.resolver
                                  route_list, route_data -> policy.route_list -> host items

Where Exim's manual and Exim differ, Exim is followed; tests/e2e/test_routing_exim.py holds the two against each other.
"""

from .chain import RouterChain
from .routes import Route, Routed, RouteDeferred, Unrouteable

__all__ = ["Route", "RouteDeferred", "Routed", "RouterChain", "Unrouteable"]
