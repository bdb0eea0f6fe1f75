"""What a disk may hold after a power cut, between any two file operations of a program.

A file's content is sure up to its last ``fsync``. A name, made or removed, is sure from the
``fsync`` of its folder on. All else may have reached the disk or not:

- journaling file systems keep the order of changes to names: some first part of them survives;
- others keep only the order of the changes to one name. What moves a file to another name never
  loses it, but may leave both names.
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from operations import Operation

State = dict[str, bytes | None]
"""Paths below the folder, with ``/``, and what a file holds; ``None`` is a folder."""

RANDOM_STATES = 2  # of each sort, at each operation


@dataclass(eq=False)
class Node:
    """A file or folder, whatever its names.

    Attributes:
        names: of a folder: what each name was, in order of time.
        changes: of a file: where and what was written; a number is a new size, bytes.
        sure: how many of the changes are on the disk.
    """

    is_folder: bool
    names: dict[str, "Name"] = field(default_factory=dict)
    changes: list[tuple[int, bytes] | int] = field(default_factory=list)
    sure: int = 0

    def content(self, count: int, torn: bool = False) -> bytes:
        """The bytes after the first changes; of the last only half if it was ``torn``."""
        found = bytearray()
        for index, change in enumerate(self.changes[:count]):
            if isinstance(change, int):
                found = found[:change] + bytes(max(0, change - len(found)))
                continue
            offset, written = change
            if torn and index == count - 1:
                written = written[: len(written) // 2]
            found += bytes(max(0, offset - len(found)))
            found[offset : offset + len(written)] = written
        return bytes(found)

    def zeros(self) -> bytes:
        """The bytes if the file's new size is on the disk, but nothing that was written since."""
        kept, size = self.content(self.sure), len(self.content(len(self.changes)))
        return kept[:size] + bytes(max(0, size - len(kept)))


@dataclass(eq=False)
class Name:
    """What one name in one folder was, in order of time, and up to where that is sure."""

    values: list[Node | None]
    sure: int = 0

    @property
    def now(self) -> Node | None:
        """What it is for a program that runs."""
        return self.values[-1]


Edit = tuple[Name, int]  # the value of a name that an operation made
Choice = Callable[[Name], int]


class Disk:
    """A folder in which a program works.

    Args:
        folder: as it is before the program begins; all that is in it is on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self._nodes: dict[int, Node] = {}
        self._root = self._load(folder)
        self._steps: list[tuple[Edit, ...]] = []

    def apply(self, operation: Operation) -> None:
        """Go on by one operation of the program."""
        if operation.result < 0:
            return
        kind, inode = operation.kind, operation.inode
        if kind in ("create", "mkdir", "nameless"):
            self._nodes[inode] = Node(kind == "mkdir")
            if kind != "nameless":
                self._edit((operation.path, self._nodes[inode]))
        elif kind == "truncate":
            self._nodes[inode].changes.append(0)
        elif kind == "write":
            self._nodes[inode].changes.append((operation.offset, operation.content))
        elif kind == "resize":
            self._nodes[inode].changes.append(operation.offset)
        elif kind == "sync":
            self._nodes[inode].sure = len(self._nodes[inode].changes)
        elif kind == "sync-folder":
            for name in self._nodes[inode].names.values():
                name.sure = len(name.values) - 1
        elif kind in ("rename", "publish"):
            self._edit((operation.second, self._nodes[inode]), (operation.path, None))
        elif kind == "link":
            self._edit((operation.second, self._nodes[inode]))
        elif kind in ("unlink", "rmdir"):
            self._edit((operation.path, None))

    def everything(self) -> State:
        """What a program that runs sees."""
        return self._tree(_latest, _all)

    def states(self, rng: random.Random) -> Iterator[tuple[str, State]]:
        """What the disk may hold if the power fails now, each with its name.

        The list is not complete; of what lies between its extremes, ``rng`` chooses.
        """
        sure = self._without_losses({}, at_once=False)
        first = self._after(self._sure_steps())
        yield "nothing", self._tree(sure, _only_sure)
        yield "everything", self.everything()
        yield "names-without-contents", self._tree(_latest, _only_sure)
        yield "names-with-zeros", self._tree(_latest, Node.zeros)
        yield "contents-without-names", self._tree(sure, _all)
        yield "journal", self._tree(first, _only_sure)
        yield "journal-and-contents", self._tree(first, _all)
        for index in range(RANDOM_STATES):
            steps = rng.randint(self._sure_steps(), len(self._steps))
            yield f"ordered-{index}", self._tree(self._after(steps), _some(rng))
        for index in range(RANDOM_STATES):
            chosen = {
                name: rng.randint(name.sure, len(name.values) - 1)
                for step in self._steps
                for name, _ in step
            }
            choice = self._without_losses(chosen, at_once=True)
            yield f"unordered-{index}", self._tree(choice, _some(rng))

    def _load(self, folder: Path) -> Node:
        node = self._nodes[folder.stat().st_ino] = Node(True)
        for path in folder.iterdir():
            if path.is_dir():
                node.names[path.name] = Name([self._load(path)])
                continue
            file = self._nodes[path.stat().st_ino] = Node(False, sure=1)
            file.changes.append((0, path.read_bytes()))
            node.names[path.name] = Name([file])
        return node

    def _edit(self, *changes: tuple[str, Node | None]) -> None:
        edits = []
        for path, node in changes:
            name = self._name(path)
            name.values.append(node)
            edits.append((name, len(name.values) - 1))
        self._steps.append(tuple(edits))

    def _name(self, path: str) -> Name:
        *folders, last = os.path.relpath(path, self._folder).split("/")
        folder = self._root
        for part in folders:
            inside = folder.names[part].now
            assert inside is not None, f"{path}: no such folder"
            folder = inside
        return folder.names.setdefault(last, Name([None]))

    def _sure_steps(self) -> int:
        """How many changes to names a file system that keeps their order has on the disk."""
        numbers = [
            number
            for number, step in enumerate(self._steps, 1)
            if any(name.sure >= index for name, index in step)
        ]
        return max(numbers, default=0)

    def _after(self, steps: int) -> Choice:
        """The names after the first so many changes."""
        chosen: dict[Name, int] = {}
        for step in self._steps[:steps]:
            chosen.update(step)
        return lambda name: chosen.get(name, 0)

    def _without_losses(self, chosen: dict[Name, int], at_once: bool) -> Choice:
        """A choice in which nothing that was moved is gone from both of its names.

        Args:
            chosen: values of names; of others, what is sure.
            at_once: undo a removal that is not sure; otherwise what is sure brings the new name.
        """
        for step in reversed(self._steps):
            if len(step) < 2:
                continue
            (new, made), (old, removed) = step
            if chosen.get(old, old.sure) >= removed and chosen.get(new, new.sure) < made:
                if at_once and old.sure < removed:
                    chosen[old] = removed - 1
                else:
                    chosen[new] = made
        return lambda name: chosen.get(name, name.sure)

    def _tree(self, choice: Choice, content: Callable[[Node], bytes]) -> State:
        found: State = {}

        def walk(folder: Node, prefix: str) -> None:
            for name, entry in folder.names.items():
                node = entry.values[choice(entry)]
                if node is not None:
                    found[prefix + name] = None if node.is_folder else content(node)
                    if node.is_folder:
                        walk(node, f"{prefix}{name}/")

        walk(self._root, "")
        return found


def _latest(name: Name) -> int:
    return len(name.values) - 1


def _all(node: Node) -> bytes:
    return node.content(len(node.changes))


def _only_sure(node: Node) -> bytes:
    return node.content(node.sure)


def _some(rng: random.Random) -> Callable[[Node], bytes]:
    def choose(node: Node) -> bytes:
        if rng.random() < 0.25:
            return node.zeros()
        count = rng.randint(node.sure, len(node.changes))
        return node.content(count, torn=count > node.sure and rng.random() < 0.5)

    return choose


def after_each(
    disk: Disk, operations: Iterable[Operation], seed: int
) -> Iterator[tuple[int, str, State]]:
    """States after no, one, two, ... operations.

    Args:
        disk: as the program found it; goes on to its end.
        operations: of the program.
        seed: decides which random states there are.

    Yields:
        The number of operations, the name of the state, and the state.
    """
    for number, operation in enumerate((None, *operations)):
        if operation is not None:
            disk.apply(operation)
        for name, state in disk.states(random.Random(f"{seed} {number}")):
            yield number, name, state


def write_state(state: State, folder: Path) -> None:
    """Make an empty folder hold a state."""
    for name, content in state.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def read_state(folder: Path) -> State:
    """What a folder holds."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }
