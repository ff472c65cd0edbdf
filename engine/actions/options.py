"""What a configuration says about workers: sockets, handlers, and what the engine's own workers are told.

Layer: adapter.  Spec: design.md "Configuration".
Everything is checked when the configuration is loaded, so that no worker finds out later: handlers are built once and
thrown away, users are looked up, paths are looked at.
"""

from __future__ import annotations

import pwd
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from .handlers import build
from .hub import MAIN
from .programs import Settings
from .supervisor import SocketOptions

if TYPE_CHECKING:
    from ..config import Config
    from .lookups import LookupOptions

#: octets of the path of a Unix socket, with the NUL behind it (unix(7)) and the number of an engine (`attach.paths`)
_MAX_PATH: Final = 108 - 3


def settings_of(config: Config, lookups: LookupOptions) -> Settings:
    """What the engine's own workers are told: `Settings.to_frame` makes HELLO's map of it."""
    handlers = {name: asdict(options) for name, options in config.handlers.items()}
    main, actions = config.main, config.actions
    return Settings(
        lookups,
        config.acls,
        config.lists,
        handlers,
        main.strict_acl_vars,
        actions.lookup_batch,
        actions.worker_nice,
    )


def sockets_of(config: Config) -> tuple[SocketOptions, ...]:
    """The sockets of `worker_sockets`.  Raises ConfigError."""
    found: list[SocketOptions] = []
    uids = tuple(_uid(config, name) for name in config.actions.worker_users)
    try:
        mode = int(config.actions.worker_socket_mode, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise _error(config, "worker_socket_mode", f"{config.actions.worker_socket_mode!r} is not octal, as 0660 is")
    for item in config.actions.worker_sockets:
        group, colon, path = item.partition(":")
        if not colon or not group or not path.startswith("/"):
            raise _error(config, "worker_sockets", f"{item!r} is not group:/path")
        if len(path.encode()) >= _MAX_PATH:
            raise _error(config, "worker_sockets", f"{path} is longer than a socket's path may be")
        if group == MAIN:
            raise _error(config, "worker_sockets", f"the group {MAIN} is the engine's own")
        if any(group == known.group or path == known.path for known in found):
            raise _error(config, "worker_sockets", f"{item!r}: a group has one socket, and a socket one group")
        found.append(SocketOptions(group=group, path=path, mode=mode, uids=uids))
    return tuple(found)


def socket_of(config: Config, group: str) -> SocketOptions:
    """The socket of a group.  Raises ConfigError."""
    for options in sockets_of(config):
        if options.group == group:
            return options
    raise _error(config, "worker_sockets", f"there is no socket for the group {group}")


def check(config: Config) -> None:
    """See that everything about workers can be used.  Raises ConfigError."""
    sockets_of(config)
    for name, options in config.handlers.items():
        try:
            build(name, asdict(options)).close()
        except ConfigError as error:
            raise ConfigError(error.message, file=config.file or None, key=error.key) from None
    if config.handlers and not config.actions.workers:
        raise _error(config, "workers", "there are [handlers], which need at least one worker")


def _uid(config: Config, name: str) -> int:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise _error(config, "worker_users", f"there is no user {name!r}") from None


def _error(config: Config, option: str, message: str) -> ConfigError:
    return ConfigError(message, file=config.file or None, key=f"actions.{option}")
