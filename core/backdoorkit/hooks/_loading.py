"""Loads one plugin at a time, so that a faulty one harms nobody but itself.

pluggy's own loader stops at the first plugin that fails, takes entry points in the order of
directories and lets the first of two equal names win without a word; hence this one.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.hooks.hookspecs import HOOK_API
from backdoorkit.hooks.info import ALLOWED_NEEDS, Kind, MethodInfo, Need
from backdoorkit.hooks.published import PublishedTable
from backdoorkit.hooks.shared_options import PoisonOptions

if TYPE_CHECKING:
    import pluggy

    from backdoorkit.hooks._metadata import Entry

__all__ = [
    "HOOKS",
    "Method",
    "Offer",
    "PluginRecord",
    "PluginState",
    "Published",
    "add_plugin",
    "load_plugin",
    "with_offers",
]

logger = logging.getLogger(__name__)

#: Which hook contributes methods of which kind.
HOOKS: Final = {
    Kind.ATTACK: "backdoorkit_attacks",
    Kind.DEFENSE: "backdoorkit_defenses",
    Kind.DETECTOR: "backdoorkit_detectors",
    Kind.ANALYSIS: "backdoorkit_analyses",
    Kind.METRIC: "backdoorkit_metrics",
    Kind.DATASET: "backdoorkit_datasets",
    Kind.MODEL: "backdoorkit_models",
    Kind.EXECUTOR: "backdoorkit_executors",
    Kind.OBSERVER: "backdoorkit_observers",
}
_PUBLISHED: Final = "backdoorkit_published_tables"
_LIFECYCLE: Final = ("backdoorkit_run_begin", "backdoorkit_step", "backdoorkit_run_end")
#: Names that recipes, tables and the command line use for no method, and for several at once.
_RESERVED: Final = frozenset({"none", "composed", "and"})


class PluginState(enum.StrEnum):
    """What became of a plugin."""

    OK = "ok"
    #: kept out by the user
    BLOCKED = "blocked"
    #: raised, or broke the contract, while it was loaded
    BROKEN = "broken"
    #: made for another version of the hook contract
    INCOMPATIBLE = "incompatible"
    #: its entry name or module was taken already
    DUPLICATE = "duplicate"
    #: offers a method under a name that another plugin of the same kind has
    CONFLICT = "conflict"


@attrs.frozen
class Method:
    """A method, and the plugin it comes from."""

    info: MethodInfo
    kind: Kind
    plugin: str
    distribution: str
    version: str

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def qualified_name(self) -> str:
        """``kind:name``, which is unique."""
        return f"{self.kind}:{self.info.name}"


@attrs.frozen
class Published:
    """A table of published figures, and the plugin it comes from."""

    table: PublishedTable
    plugin: str
    distribution: str
    version: str

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def qualified_name(self) -> str:
        """``published:name``, which is unique."""
        return f"published:{self.table.name}"


#: whatever contribution hooks return
Offer = Method | Published


@attrs.frozen(kw_only=True)
class PluginRecord:
    """One plugin as found: where it comes from, whether it can be used, and if not, why."""

    name: str
    module: str
    distribution: str
    version: str
    state: PluginState = PluginState.OK
    #: one line; empty unless something is wrong
    error: str = ""
    #: qualified names of its methods; known for conflicting plugins too
    methods: tuple[str, ...] = ()
    #: names of the tables of published figures that it brings
    published: tuple[str, ...] = ()
    #: milliseconds that importing the module took
    import_ms: float = attrs.field(default=0.0, eq=False)

    @property
    def label(self) -> str:
        """``'name' (distribution version)`` for messages."""
        origin = f"{self.distribution} {self.version}".strip()
        return f"{self.name!r} ({origin})" if origin else repr(self.name)


class _Unusable(Exception):
    """Ends the loading of a plugin with a state of its own."""

    def __init__(self, state: PluginState, message: str) -> None:
        self.state = state
        super().__init__(message)


def load_plugin(
    manager: pluggy.PluginManager, entry: Entry
) -> tuple[PluginRecord, tuple[Offer, ...]]:
    """Import, register and question one plugin; never raises but for ``KeyboardInterrupt``."""
    record = PluginRecord(
        name=entry.name,
        module=entry.module,
        distribution=entry.distribution,
        version=entry.version,
    )
    started = time.perf_counter()
    try:
        # Standard output belongs to the command's results.
        with contextlib.redirect_stdout(sys.stderr):
            module = entry.load()
            record = attrs.evolve(record, import_ms=1000 * (time.perf_counter() - started))
            offers = add_plugin(manager, module, record)
    except KeyboardInterrupt:
        raise
    except _Unusable as reason:
        return attrs.evolve(record, state=reason.state, error=str(reason)), ()
    except BaseException as error:  # SystemExit too: a plugin must not end the command
        logger.debug("plugin %s failed to load", record.label, exc_info=True)
        return attrs.evolve(record, state=PluginState.BROKEN, error=one_line(error)), ()
    return with_offers(record, offers), offers


def with_offers(record: PluginRecord, offers: Iterable[Offer]) -> PluginRecord:
    """The record with the names of what its plugin offers."""
    methods = [offer.qualified_name for offer in offers if isinstance(offer, Method)]
    tables = [offer.name for offer in offers if isinstance(offer, Published)]
    return attrs.evolve(record, methods=tuple(sorted(methods)), published=tuple(sorted(tables)))


def add_plugin(
    manager: pluggy.PluginManager, plugin: object, record: PluginRecord
) -> tuple[Offer, ...]:
    """Register ``plugin`` and return what it offers; on failure nothing stays registered."""
    api = getattr(plugin, "BACKDOORKIT_API", HOOK_API)
    if api != HOOK_API:
        raise _Unusable(
            PluginState.INCOMPATIBLE,
            f"made for hook contract {api!r}, this is {HOOK_API}; "
            "install a release of the plugin that matches",
        )
    if manager.is_registered(plugin):
        raise _Unusable(
            PluginState.DUPLICATE,
            f"its module is already loaded as {manager.get_canonical_name(plugin)!r} "
            f"and again as {manager.get_name(plugin)!r}",
        )
    try:
        manager.register(plugin, name=record.name)
        manager.check_pending()
        _check_implementations(manager, plugin)
        return (
            *_contributions(manager, plugin, record),
            *_published(manager, plugin, record),
        )
    except BaseException:
        # Older pluggy leaves a plugin half registered when `register` itself raises.
        if manager.has_plugin(record.name):
            manager.unregister(name=record.name)
        raise


def one_line(error: BaseException) -> str:
    """``Type: message`` without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _implementations(
    manager: pluggy.PluginManager, plugin: object, hook: str
) -> list[pluggy.HookImpl]:
    caller = getattr(manager.hook, hook)
    return [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]


def _check_implementations(manager: pluggy.PluginManager, plugin: object) -> None:
    found = False
    for hook in (*HOOKS.values(), _PUBLISHED, *_LIFECYCLE):
        implementations = _implementations(manager, plugin, hook)
        if not implementations and callable(getattr(plugin, hook, None)):
            raise TypeError(f"{hook} lacks the decorator @backdoorkit.hookimpl")
        for impl in implementations:
            found = True
            if impl.kwargnames:
                # pluggy passes such arguments or not, depending on its version.
                raise TypeError(
                    f"{hook} gives its argument {impl.kwargnames[0]!r} a default; remove it"
                )
            if impl.hookwrapper or (impl.wrapper and hook != "backdoorkit_step"):
                raise TypeError(f"{hook} is a wrapper; only backdoorkit_step with wrapper=True can")
    if not found:
        raise TypeError("implements no hook; mark its functions with @backdoorkit.hookimpl")


def _contributions(
    manager: pluggy.PluginManager, plugin: object, record: PluginRecord
) -> Iterable[Method]:
    for kind, hook in HOOKS.items():
        for impl in _implementations(manager, plugin, hook):
            offered = impl.function()
            if isinstance(offered, str | MethodInfo) or not isinstance(offered, Iterable):
                raise TypeError(f"{hook} must return a list of MethodInfo, not {offered!r}")
            seen: set[str] = set()
            for info in offered:
                _check_info(info, kind, hook)
                if info.name in seen:
                    raise ValueError(f"{hook} offers {info.name!r} twice")
                seen.add(info.name)
                yield Method(info, kind, record.name, record.distribution, record.version)


def _published(
    manager: pluggy.PluginManager, plugin: object, record: PluginRecord
) -> Iterable[Published]:
    for impl in _implementations(manager, plugin, _PUBLISHED):
        seen: set[str] = set()
        offered: Any = impl.function()
        for table in offered:
            if not isinstance(table, PublishedTable):
                raise TypeError(f"{_PUBLISHED} must return a list of PublishedTable, not {table!r}")
            if table.name in seen:
                raise ValueError(f"{_PUBLISHED} offers {table.name!r} twice")
            seen.add(table.name)
            yield Published(table, record.name, record.distribution, record.version)


def _check_info(info: Any, kind: Kind, hook: str) -> None:
    if not isinstance(info, MethodInfo):
        raise TypeError(f"{hook} must return a list of MethodInfo, not of {info!r}")
    if info.name in _RESERVED:
        raise ValueError(f"{hook} offers {info.name!r}, which is a reserved name")
    for need in sorted(info.needs, key=str):
        if not isinstance(need, Need):
            raise TypeError(f"{info.name} needs {need!r}; write it as backdoorkit.Need member")
        if need not in ALLOWED_NEEDS[kind]:
            allowed = ", ".join(sorted(ALLOWED_NEEDS[kind])) or "nothing"
            raise ValueError(
                f"{info.name} needs {need.value!r}, which no {kind} may have (allowed: {allowed})"
            )
    if kind is Kind.ATTACK and not issubclass(info.config, PoisonOptions):
        raise TypeError(
            f"config of the attack {info.name} must derive from backdoorkit.PoisonOptions"
        )
