"""Which files rules deny: what the guard in the kernel looks up on the way from a file to the root (bpf/guard.h)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from supervisor.policy import Rule
from supervisor.rules.patterns import ANY_DEPTH, is_literal, path_parts

READ, WRITE, EXEC, UNLINK, RENAME, CHMOD, LINK, MKDIR = (1 << place for place in range(8))
"""enum guarded_use."""
_ALL: Final = 0xFF
PINNED: Final = 0x100
KILL_SHIFT: Final = 8
HOLDS: Final = 1 << 16
UNRESOLVED: Final = 1 << 17
_HELD: Final = ~MKDIR
"""What would no longer hold of a file once a directory above it has another name."""

_USES: Final[Mapping[str, int]] = {
    "write": WRITE,
    "exec": EXEC,
    "unlink": UNLINK,
    "rename": RENAME,
    "chmod": CHMOD,
    "link": LINK,
    "mkdir": MKDIR,
}
KIND_OF_USE: Final[Mapping[int, str]] = {READ: "open", **{use: kind for kind, use in _USES.items()}}
DENIABLE_FILES: Final = ("open", *_USES)
FORMS: Final = "/DIRECTORY/NAME, /DIRECTORY/**, **/NAME and **/NAME/**"
ACCESS: Final = {"read": READ, "write": WRITE}
RULES_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class Place:
    """A pattern that the kernel can decide: one path from the root, or one name `anywhere`. `below`: all below it, too."""

    names: tuple[str, ...]
    anywhere: bool
    below: bool


@dataclass(frozen=True, slots=True)
class Denied:
    """One entry of the map `denied`. `rules`: by use, the number of a rule that denies it, from 1; 0 for none."""

    names: tuple[str, ...]
    anywhere: bool
    exact: int
    below: int
    rules: tuple[int, ...]


def place_of(pattern: str) -> Place | None:
    """None for a pattern of another form than FORMS."""
    parts = path_parts(pattern)
    anywhere = parts[:1] == (ANY_DEPTH,)
    below = parts[-1:] == (ANY_DEPTH,) and len(parts) > 1
    names = parts[anywhere : len(parts) - below]
    if not names or not all(map(is_literal, names)) or (anywhere and len(names) > 1):
        return None
    return Place(names, anywhere, below)


def uses_of(kind: str, match: Mapping[str, Sequence[str]]) -> int:
    if kind != "open":
        return _USES.get(kind, 0)
    return sum({ACCESS[word] for word in match.get("access", ACCESS)})


def check_denial(kind: str, match: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for a denial of files that the guard could not carry out as it stands."""
    known = {"path", "access"} if kind == "open" else {"path"}
    if set(match) - known:
        raise ValueError(
            f"action: a denial of {kind} hangs on {' and '.join(sorted(known))} alone; leave the other fields out"
        )
    if "path" not in match:
        raise ValueError(f"match.path: a rule that denies {kind} names the files it is about")
    for pattern in match["path"]:
        if place_of(pattern) is None:
            raise ValueError(f"match.path: '{pattern[:64]}' cannot be denied; what can has the form {FORMS}")


def is_guarded(kind: str, rule: Rule) -> bool:
    """Whether the guard carries out what `rule` says of events of that kind, as far as its patterns are of FORMS."""
    if kind not in DENIABLE_FILES or rule.action not in ("deny", "kill") or rule.count > 1 or rule.near:
        return False
    return "path" in rule.match and not set(rule.match) - {"path", "access" if kind == "open" else "path"}


def denies_files(rules: Iterable[Rule], *actions: str) -> bool:
    return any(rule.action in actions and is_guarded(kind, rule) for rule in rules for kind in rule.on)


def denied_of(rules: Iterable[Rule]) -> tuple[tuple[Denied, ...], tuple[str, ...]]:
    """The entries, and the names of the rules that they are numbered by."""
    found: dict[tuple[tuple[str, ...], bool], Denied] = {}
    names: list[str] = []

    def add(key: tuple[tuple[str, ...], bool], exact: int, below: int, number: int) -> None:
        old = found.get(key, Denied(*key, 0, 0, (0,) * 8))
        uses = exact | below
        numbers = tuple(number if uses & 1 << n and not old.rules[n] else old.rules[n] for n in range(8))
        found[key] = Denied(*key, old.exact | exact, old.below | below, numbers)

    # Of several that deny the same, one that kills is named.
    for rule in sorted(rules, key=lambda rule: rule.action != "kill"):
        places = [place for pattern in rule.match.get("path", ()) if (place := place_of(pattern)) is not None]
        uses = 0
        for kind in rule.on:
            if is_guarded(kind, rule):
                uses |= uses_of(kind, rule.match)
        if not uses or not places or len(names) >= RULES_MAX:
            continue
        names.append(rule.name)
        bits = uses | uses << KILL_SHIFT if rule.action == "kill" else uses
        for place in places:
            add((place.names, place.anywhere), bits, bits if place.below else 0, len(names))
            if rule.action == "deny" and uses & _HELD and not place.anywhere:
                for depth in range(1, len(place.names)):
                    add((place.names[:depth], False), HOLDS, 0, 0)
    return tuple(found[key] for key in sorted(found)), tuple(names)


def uses_denied(entries: Iterable[Denied]) -> int:
    """For struct run_entry: what is denied of any file, and whether the run may mount any elsewhere."""
    found = 0
    for entry in entries:
        bits = entry.exact | entry.below
        found |= bits & _ALL
        # What only kills may be mounted: sandboxes within the run shall work where nobody has asked for a denial.
        if bits & _ALL & ~(bits >> KILL_SHIFT):
            found |= PINNED
    return found
