"""The registry: which plugins there are, what they offer, and the one place that calls hooks.

A registry is built explicitly by :func:`load_registry` and handed on; there is no global one. It
does not depend on the order in which plugins are found.
"""

from __future__ import annotations

import contextvars
import logging
import os
from typing import TYPE_CHECKING, Any, Final

import attrs
import pluggy

from backdoorkit.errors import (
    BrokenPluginError,
    ContractError,
    InputError,
    UnknownNameError,
    nearest,
)
from backdoorkit.hooks import hookspecs
from backdoorkit.hooks._creating import create_method
from backdoorkit.hooks._loading import (
    Method,
    Offer,
    PluginRecord,
    PluginState,
    Published,
    add_plugin,
    load_plugin,
    one_line,
    with_offers,
)
from backdoorkit.hooks._metadata import Entry, installed_entries, installed_version
from backdoorkit.hooks.hookspecs import PROJECT, hookimpl
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.presets import resolve_config

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = [
    "ALLOW_VARIABLE",
    "BLOCK_VARIABLE",
    "Entry",
    "Method",
    "PluginRecord",
    "PluginState",
    "Published",
    "Registry",
    "load_registry",
    "resolve_config",
]

logger = logging.getLogger(__name__)

#: Comma-separated entry names: no other plugins are loaded; empty means none.
ALLOW_VARIABLE: Final = "BACKDOORKIT_PLUGINS"
#: Comma-separated entry names that are not loaded.
BLOCK_VARIABLE: Final = "BACKDOORKIT_DISABLE_PLUGINS"

#: The core's own data sets and architectures come through the same hooks as everybody's.
_CATALOGS: Final = (
    "backdoorkit.data.catalog",
    "backdoorkit.models.catalog",
    "backdoorkit.pipeline.catalog",
)

_default_step: contextvars.ContextVar[Callable[[Any, Any], Any]] = contextvars.ContextVar(
    "default_step"
)


class _CoreSteps:
    """The core's own implementation of a step: it comes last."""

    @staticmethod
    @hookimpl(trylast=True)
    def backdoorkit_step(run: Any, step: Any) -> Any:
        return _default_step.get()(run, step)


class Registry:
    """All plugins and methods, and typed calls of the lifecycle hooks."""

    def __init__(self, manager: pluggy.PluginManager | None = None) -> None:
        self._manager = _new_manager() if manager is None else manager
        self._plugins: list[PluginRecord] = []
        self._methods: dict[tuple[Kind, str], Method] = {}
        self._published: dict[str, Published] = {}

    # -- what there is -----------------------------------------------------------------------------

    @property
    def plugins(self) -> tuple[PluginRecord, ...]:
        """All plugins that were found, usable or not, sorted by name."""
        return tuple(sorted(self._plugins, key=lambda r: (r.name, r.distribution, r.version)))

    def methods(self, kind: Kind | None = None) -> tuple[Method, ...]:
        """Methods of one kind, or of all kinds in their order, sorted by name."""
        kinds = tuple(Kind) if kind is None else (kind,)
        return tuple(
            self._methods[key]
            for wanted in kinds
            for key in sorted(key for key in self._methods if key[0] is wanted)
        )

    def find(self, name: str, kind: Kind | None = None) -> Method:
        """The method called ``name``, which may be qualified as in ``attack:badnets``.

        Raises
        ------
        UnknownNameError
            with the nearest name, where there is no such method.
        BrokenPluginError
            where it is a plugin of that name which cannot be used.
        InputError
            where methods of several kinds have that name and ``kind`` is not given.

        """
        bare, kind = _split(name, kind)
        found = [m for m in self.methods(kind) if m.name == bare]
        if len(found) == 1:
            return found[0]
        if found:
            choices = " or ".join(method.qualified_name for method in found)
            raise InputError(f"{bare!r} is the name of several methods; write {choices}")
        self._refuse_unusable(bare, kind)
        raise self._unknown(bare, kind)

    def published_tables(self) -> tuple[Published, ...]:
        """All tables of published figures, sorted by name."""
        return tuple(self._published[name] for name in sorted(self._published))

    def find_published(self, name: str) -> Published:
        """The table of published figures called ``name``.

        Raises :class:`UnknownNameError` with the nearest name, where there is none.
        """
        if name not in self._published:
            hint = "" if nearest(name, self._published) else "; is its plugin installed?"
            raise UnknownNameError("table of published figures", name, self._published, hint)
        return self._published[name]

    def create(self, method: Method, config: Any) -> Any:
        """The method object: an instance of ``backdoorkit.contracts``' class for its kind.

        Raises
        ------
        BrokenPluginError
            where the implementation cannot be imported.
        ContractError
            where it is missing, of the wrong class, or cannot be made from its configuration.

        """
        return create_method(method, config)

    def register(self, plugin: object, name: str | None = None) -> PluginRecord:
        """Add a plugin of this process (a module or any object with hook implementations).

        Unlike installed plugins it is not isolated: what is wrong with it is raised.
        """
        name = name or getattr(plugin, "__name__", None) or type(plugin).__name__
        record = PluginRecord(name=name, module="", distribution="", version="")
        try:
            offers = add_plugin(self._manager, plugin, record)
        except Exception as error:
            raise ContractError(f"plugin {name!r} cannot be used: {one_line(error)}") from error
        if clashes := self._clashes(offers):
            self._manager.unregister(name=name)
            raise ContractError(f"plugin {name!r} cannot be used: {clashes}")
        record = with_offers(record, offers)
        self._accept(record, offers)
        return record

    def unregister(self, name: str) -> None:
        """Take a plugin that was given to :meth:`register` out again."""
        self._manager.unregister(name=name)
        self._plugins = [record for record in self._plugins if record.name != name]
        self._methods = {k: m for k, m in self._methods.items() if m.plugin != name}
        self._published = {k: t for k, t in self._published.items() if t.plugin != name}

    # -- lifecycle ---------------------------------------------------------------------------------

    def run_begin(self, run: Any) -> None:
        """Tell all observers that a run begins; one that fails is logged and passed over."""
        self._notify("backdoorkit_run_begin", run=run)

    def step(self, run: Any, step: Any, default: Callable[[Any, Any], Any]) -> Any:
        """Carry out one step: wrappers around the first plugin that answers, else ``default``.

        Unlike an observer, a hook here is part of the step: what it raises fails the step just as
        an error of the step itself would.
        """
        token = _default_step.set(default)
        try:
            result = self._manager.hook.backdoorkit_step(run=run, step=step)
        finally:
            _default_step.reset(token)
        if result is None:
            raise ContractError(
                f"step {step!r} came back without a result; "
                "a wrapper of backdoorkit_step must return what its yield gave it"
            )
        return result

    def run_end(self, run: Any, error: BaseException | None) -> None:
        """Tell all observers that a run is over; one that fails is logged and passed over."""
        self._notify("backdoorkit_run_end", run=run, error=error)

    # -- inside ------------------------------------------------------------------------------------

    def _notify(self, hook: str, **arguments: Any) -> None:
        # A loop of our own: in pluggy's, an error keeps the later observers from being called.
        caller = getattr(self._manager.hook, hook)
        for impl in sorted(caller.get_hookimpls(), key=lambda impl: impl.plugin_name):
            try:
                impl.function(*(arguments[name] for name in impl.argnames))
            except Exception as error:
                logger.warning(
                    "plugin %r failed in %s and was passed over: %s",
                    impl.plugin_name,
                    hook,
                    one_line(error),
                    exc_info=logger.isEnabledFor(logging.DEBUG),
                )

    def _accept(self, record: PluginRecord, offers: Iterable[Offer]) -> None:
        self._plugins.append(record)
        for offer in offers:
            if isinstance(offer, Method):
                self._methods[offer.kind, offer.name] = offer
            else:
                self._published[offer.name] = offer

    def _clashes(self, offers: Iterable[Offer]) -> str:
        taken = {
            offer.qualified_name: first.plugin
            for offer in offers
            if (first := self._offered(offer)) is not None
        }
        return "; ".join(
            f"{name} is offered by plugin {plugin!r} too" for name, plugin in sorted(taken.items())
        )

    def _offered(self, offer: Offer) -> Offer | None:
        """What bears the name of ``offer`` already."""
        if isinstance(offer, Method):
            return self._methods.get((offer.kind, offer.name))
        return self._published.get(offer.name)

    def _load(self, entries: Iterable[Entry], refused: Callable[[str], str]) -> None:
        loaded: list[tuple[PluginRecord, tuple[Offer, ...]]] = []
        names: dict[str, Entry] = {}
        for entry in entries:
            if reason := refused(entry.name):
                self._set_aside(entry, PluginState.BLOCKED, reason)
            elif first := names.get(entry.name):
                self._set_aside(
                    entry,
                    PluginState.DUPLICATE,
                    f"{first.distribution or first.module} offers a plugin of that name too; "
                    "uninstall one of them",
                )
            else:
                names[entry.name] = entry
                loaded.append(load_plugin(self._manager, entry))
        # The plugin named like its method keeps the name, whatever else was found before it.
        for record, offers in sorted(loaded, key=_claim):
            if clashes := self._clashes(offers):
                self._manager.unregister(name=record.name)
                self._accept(attrs.evolve(record, state=PluginState.CONFLICT, error=clashes), ())
            else:
                self._accept(record, offers)

    def _set_aside(self, entry: Entry, state: PluginState, error: str) -> None:
        self._plugins.append(PluginRecord(**attrs.asdict(entry), state=state, error=error))

    def _refuse_unusable(self, name: str, kind: Kind | None) -> None:
        kinds = tuple(Kind) if kind is None else (kind,)
        wanted = {f"{kind}:{name}" for kind in kinds}
        for record in self.plugins:
            if record.state is not PluginState.OK and (
                record.name == name or wanted & set(record.methods)
            ):
                raise BrokenPluginError(f"plugin {record.label} is {record.state}: {record.error}")

    def _unknown(self, name: str, kind: Kind | None) -> UnknownNameError:
        known = {method.name for method in self.methods(kind)}
        others = [m.kind for m in self.methods() if m.name == name]
        if others:
            hint = f"; there is {' and '.join(f'{kind}:{name}' for kind in others)}"
        elif nearest(name, known):
            hint = ""
        else:
            hint = (
                f"; is its plugin installed (pip install backdoorkit-{name}, if it is called so)?"
            )
        return UnknownNameError(str(kind or "method"), name, known, hint)


def load_registry(
    *,
    allow: Collection[str] | None = None,
    block: Collection[str] = (),
    strict: bool = False,
    entry_points: Iterable[Entry] | None = None,
) -> Registry:
    """Find and load all plugins; one that is faulty is recorded as such and harms no other.

    Parameters
    ----------
    allow:
        Entry names of the only plugins to load; default from ``BACKDOORKIT_PLUGINS``, else all.
        The core's own catalogues are always loaded.
    block:
        Entry names of plugins not to load, added to those in ``BACKDOORKIT_DISABLE_PLUGINS``.
    strict:
        Raise :class:`BrokenPluginError` if any plugin that is not blocked cannot be used.
    entry_points:
        Instead of what is installed.

    """
    if allow is None and ALLOW_VARIABLE in os.environ:
        allow = _names(os.environ[ALLOW_VARIABLE])
    block = {*block, *_names(os.environ.get(BLOCK_VARIABLE, ""))}

    def refused(name: str) -> str:
        if name in block:
            return f"blocked by the user ({BLOCK_VARIABLE})"
        if allow is not None and name not in allow:
            return f"not among the plugins that the user allows ({ALLOW_VARIABLE})"
        return ""

    registry = Registry()
    version = installed_version(PROJECT)
    core = [Entry(m.removesuffix(".catalog"), m, PROJECT, version) for m in _CATALOGS]
    registry._load(core, lambda _: "")
    found = installed_entries() if entry_points is None else entry_points
    registry._load(sorted(found, key=_precedence), refused)
    if strict:
        _require_usable(registry)
    return registry


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(_CoreSteps, name=f"{PROJECT}.steps")
    return manager


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",") if name.strip()}


def _precedence(entry: Entry) -> tuple[bool | str, ...]:
    # Of two entries of one name, that of the distribution named after it comes first.
    own = f"{PROJECT}-{entry.name}"
    return (entry.name, entry.distribution != own, entry.distribution, entry.version, entry.module)


def _claim(loaded: tuple[PluginRecord, tuple[Offer, ...]]) -> tuple[bool, str]:
    record, offers = loaded
    return (record.name not in {offer.name for offer in offers}, record.name)


def _split(name: str, kind: Kind | None) -> tuple[str, Kind | None]:
    prefix, colon, bare = name.partition(":")
    if not colon:
        return name, kind
    kinds = [known.value for known in Kind]
    if prefix not in kinds:
        raise UnknownNameError("kind of method", prefix, kinds)
    if kind is not None and prefix != kind:
        raise InputError(f"a method of kind {kind.value!r} is wanted here, not {name!r}")
    return bare, Kind(prefix)


def _require_usable(registry: Registry) -> None:
    faulty = [r for r in registry.plugins if r.state not in (PluginState.OK, PluginState.BLOCKED)]
    if faulty:
        listed = "; ".join(f"{r.label} is {r.state}: {r.error}" for r in faulty)
        raise BrokenPluginError(f"strict loading wants every plugin usable, but {listed}")
