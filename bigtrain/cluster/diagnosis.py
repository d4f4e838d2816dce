"""Which rank is at fault, by what the ranks report: one that is silent, hangs in work of its own, or is behind the others."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from bigtrain.cluster.peers import ENDED, Beat, Diagnosis

_NAMED = 8  # ranks that a message lists at most


def find_silent(before: Sequence[Beat | None], after: Sequence[Beat | None], apart_s: float) -> Diagnosis | None:
    """The ranks without a new beat between two readings of all ranks' beats, `apart_s` seconds apart; None if there is none."""
    silent = [a for b, a in zip(before, after, strict=True) if b and a and a.number == b.number and not a.left]
    words = [
        f"{beat.name} has given no sign of life for at least {apart_s:.0f} s: its process is dead or stopped, or the "
        f"network to it is cut; it was last heard of at {beat.activity}"
        for beat in silent
    ]
    return Diagnosis(_listed(words), frozenset(beat.rank for beat in silent)) if silent else None


def find_alone(beats: Sequence[Beat | None]) -> Diagnosis | None:
    """The ranks that hang in work of their own, for which no other rank can be the reason."""
    stuck = [beat for beat in beats if beat is not None and beat.alone and beat.overdue]
    words = [f"{beat.name} hangs in work of its own: it has been at {_since(beat)}" for beat in stuck]
    return Diagnosis(_listed(words), frozenset(beat.rank for beat in stuck)) if stuck else None


def diagnose(before: Sequence[Beat | None], after: Sequence[Beat | None], apart_s: float) -> Diagnosis | None:
    """The diagnosis of a rank that waits too long, from two readings of all ranks' beats, `apart_s` seconds apart; None while a
    rank that is behind the others is within its own limit. A rank without a beat (None) has not begun."""
    missing = [rank for rank, beat in enumerate(after) if beat is None]
    silent = find_silent(before, after, apart_s)
    if missing:
        words = [f"rank {rank} has not begun" for rank in missing] + ([silent.text] if silent else [])
        return Diagnosis(_listed(words), frozenset(missing) | (silent.ranks if silent else frozenset()))
    found = silent or find_alone(after)
    if found is not None:
        return found
    beats = [beat for beat in after if beat is not None]
    least = min(beat.marks for beat in beats)
    behind = [beat for beat in beats if beat.marks == least]
    if not all(beat.overdue for beat in behind):
        return None
    if len(behind) == len(beats) and any(beat.waits for beat in beats):
        behind = [beat for beat in beats if not beat.waits] or behind
    return Diagnosis(_describe(behind, beats), frozenset(beat.rank for beat in behind))


def _since(beat: Beat) -> str:
    return f"{beat.activity} for {beat.idle_s:.0f} s"


def _describe(behind: Sequence[Beat], beats: Sequence[Beat]) -> str:
    first = behind[0]
    if len(beats) == 1:
        return f"it has been at {_since(first)}"
    if len(behind) == len(beats):
        first, last = max(beats, key=lambda beat: beat.idle_s), min(beats, key=lambda beat: beat.idle_s)
        apart_s = first.idle_s - last.idle_s
        sooner = (
            f". {first.name} stood still first, {apart_s:.0f} s before the last" if apart_s > first.limit_s / 10 else ""
        )
        return (
            f"all {len(beats)} ranks have been at the same point for {last.idle_s:.0f} s ({first.activity}): none is behind "
            f"the others, so the network between them, a device or a file system hangs; the stacks tell more{sooner}"
        )
    furthest = max(beats, key=lambda beat: (beat.marks, beat.waits))
    how = "is behind the others" if first.marks < furthest.marks else "does not wait for the others, as they do for it"
    words = [f"{beat.name} {how}: it has been at {_since(beat)}" for beat in behind]
    return f"{_listed(words)}\n  {furthest.name} waits at {furthest.activity}"


def _listed(words: Sequence[str]) -> str:
    more = [f"and {len(words) - _NAMED} more"] if len(words) > _NAMED else []
    return "\n  ".join([*words[:_NAMED], *more])


def find_dead(before: Sequence[Beat | None], after: Sequence[Beat | None], silent: bool) -> Diagnosis | None:
    """The ranks whose process is gone: on this host as the system says; on others, if `silent`, those without a new beat."""
    dead = [
        a
        for b, a in zip(before, after, strict=True)
        if b
        and a
        and not a.left
        and (_is_gone(a) if a.host == socket.gethostname() else silent and a.number == b.number)
    ]
    words = [f"{beat.name} {_how_it_ended(beat)}" for beat in dead]
    return Diagnosis(_listed(words), frozenset(beat.rank for beat in dead)) if dead else None


def _how_it_ended(beat: Beat) -> str:
    if ENDED in beat.activity:
        return beat.activity
    return f"has died: something killed it (perhaps the system, for lack of memory); it was last heard of at {beat.activity}"


def _is_gone(beat: Beat) -> bool:
    """Whether the process has ended, though its parent may not have asked how."""
    try:
        os.kill(beat.process, 0)
        state = Path(f"/proc/{beat.process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except (OSError, IndexError):
        return False
    return state in "ZX"
