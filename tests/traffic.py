"""Count the bytes of global memory that a Triton kernel asks for, in Triton's interpreter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import triton.runtime.interpreter as interpreter

SECTOR = 32  # bytes; the least that a GPU's memory delivers


@dataclass
class Traffic:
    """Every access of the launches recorded: program, kind and sectors touched."""

    accesses: list[tuple[tuple[int, int, int], str, np.ndarray]] = field(default_factory=list)

    def bytes_of(self, kind: str) -> int:
        """Bytes of distinct sectors that were loaded or stored by anybody: with a cache that
        forgets nothing, what memory has to move."""
        sectors = [found for _, which, found in self.accesses if which == kind]
        return SECTOR * len(np.unique(np.concatenate(sectors))) if sectors else 0

    def requested(self, kind: str) -> int:
        """Bytes that the programs ask for, each sector once a program: what the L2 delivers."""
        programs: dict[tuple[int, int, int], list[np.ndarray]] = {}
        for program, which, found in self.accesses:
            if which == kind:
                programs.setdefault(program, []).append(found)
        return SECTOR * sum(len(np.unique(np.concatenate(all_))) for all_ in programs.values())

    def from_memory(self, cache: int) -> int:
        """Bytes loaded from memory behind a cache of so many bytes that evicts the oldest.

        Programs run one after the other. A sector is fetched again if, since its last use, more
        bytes than the cache holds were asked for.
        """
        last: dict[int, int] = {}
        clock = fetched = 0
        for _, kind, sectors in self.accesses:
            for sector in sectors.tolist():
                if kind == "load" and clock - last.get(sector, -cache - 1) > cache:
                    fetched += SECTOR
                last[sector] = clock
                clock += SECTOR
        return fetched


@contextmanager
def recorded() -> Iterator[Traffic]:
    """Record the accesses of every kernel launched inside; the interpreter must be on."""
    builder, traffic = interpreter.interpreter_builder, Traffic()
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(kind: str, pointers, mask) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        asked = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        first = pointers.data[asked].astype(np.int64)
        touched = np.concatenate([first // SECTOR, (first + max(size, 1) - 1) // SECTOR])
        traffic.accesses.append((builder.grid_idx, kind, np.unique(touched)))

    def noting_load(pointers, mask, *rest, **named):
        note("load", pointers, mask)
        return load(pointers, mask, *rest, **named)

    def noting_store(pointers, value, mask, *rest, **named):
        note("store", pointers, mask)
        return store(pointers, value, mask, *rest, **named)

    builder.create_masked_load, builder.create_masked_store = noting_load, noting_store
    try:
        yield traffic
    finally:
        del builder.create_masked_load, builder.create_masked_store
