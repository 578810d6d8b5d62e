"""What the updates of all optimizers share, around the rule of one: scaling, skipping, master weights, lists.

An optimizer is a function ``rule(p, g, *states, step, *, lr, ...) -> (p, *states)`` (`superscaler.runtime.ops.adam`).
`functional` makes of it the operator of one parameter, `in_place` what a program calls on lists. `step` counts from 1:
the first update a parameter ever gets is step 1.

On lists `step` may be a whole number in a tensor on the device: then nothing is read on the host, and the same calls
serve every step but the first of a process. Its number is one of Python's, since states that are new are filled in it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from superscaler.runtime.ops.learning_rate import Rate, learning_rate

Rule = Callable[..., tuple[Tensor, ...]]
_CHUNK_BYTES = 2**26
"""Gradients that are scaled are copied this many at a time, so that copies of all never stand side by side."""


def functional(rule: Rule) -> Callable[..., Any]:
    """The operator ``update(p, g, *states, step, **options)``: the new parameter, then the new states.

    Every update takes, beside the rule's own options:

    * ``lr``: a number, or a schedule as `learning_rate` takes it;
    * ``gradient_scale``: a number every element of the gradient is multiplied by;
    * ``skip``: whether this step changes nothing;
    * ``count``: the number of updates done with this one, where some were skipped;
    * ``master_weights``: the last state is the parameter in another precision, which is what is updated.
    """

    @wraps(rule)
    def update(
        p: Tensor, g: Tensor, *states_and_step: Any, lr: Rate, gradient_scale: Tensor | None = None,
        skip: Tensor | None = None, count: Tensor | None = None, master_weights: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        *states, step = states_and_step
        old = [p, *states]
        number = max(1, int(step if count is None else count))  # 0 where the very first is skipped
        if master_weights:
            *states, master = states
            p = p.to(master.dtype) if number == 1 else master
        g = g.to(p.dtype)
        if gradient_scale is not None:
            g = g * gradient_scale
        new = rule(p, g, *states, number, lr=learning_rate(lr, step), **options)
        if master_weights:
            new = (new[0].to(old[0].dtype), *new[1:], new[0])
        if skip is not None:
            new = tuple(torch.where(skip, before, after) for before, after in zip(old, new, strict=True))
        return new[0] if len(new) == 1 else new

    return update


def in_place(rule: Rule) -> Callable[..., None]:
    """``update_(ps, gs, *states, step, **options)`` over lists; overwrites parameters and states."""

    def row_by_row(p: list, g: list, *states_step: Any, skip: Tensor | None, **options: Any) -> None:
        *states, step = states_step
        for row in zip(p, g, *states, strict=True):
            new = rule(*row, step, **options)
            for target, value in zip((row[0], *row[2:]), new, strict=True):
                target.copy_(value if skip is None else torch.where(skip != 0, target, value))

    return fused(row_by_row)


def fused(kernel: Callable[..., None]) -> Callable[..., None]:
    """As `in_place`, where a kernel of torch takes the lists: ``kernel(ps, gs, *states, step, skip=..., **options)``.

    `skip` is None, or a float32 number on the device that is 1 where nothing is to change, as torch's kernels want it.
    """

    @wraps(kernel)
    def update_(
        ps: Sequence[Tensor], gs: Sequence[Tensor], *states_and_step: Any, lr: Rate,
        gradient_scale: Tensor | None = None, skip: Tensor | None = None, count: Tensor | None = None,
        master_weights: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        *states, step = states_and_step
        number, updated = step if count is None else count, ps
        if not isinstance(step, Tensor):
            number = int(number)
        if master_weights:
            *states, updated = states
            if is_first(number):
                torch.ops.aten._foreach_copy_(updated, ps)
        if isinstance(step, Tensor):
            skip = None if skip is None else skip.float()
        elif skip is not None and bool(skip):
            return
        else:
            skip = None
        rate = _as_kernels_want(learning_rate(lr, step))
        with _columns(updated, gs, *states) as groups:
            for columns in groups.values():
                for p, g, *rest in _scaled(columns, gradient_scale):
                    kernel(p, g, *rest, number, lr=rate, skip=skip, **options)
        if master_weights:
            torch.ops.aten._foreach_copy_(ps, updated)

    return update_


def is_first(number: int | Tensor) -> bool:
    """Whether no update was made before this one, which is not the case where the number is in a tensor."""
    return not isinstance(number, Tensor) and number <= 1


def _as_kernels_want(rate: float | Tensor) -> float | Tensor:
    """A learning rate on a GPU in float32, in which torch's kernels there read it."""
    return rate.float() if isinstance(rate, Tensor) and rate.is_cuda else rate


def update_fetching(
    update_: Callable[..., None], ps: Sequence[Tensor], gs: Sequence[Tensor], *states_and_step: Any,
    **options: Any,
) -> None:  # fmt: skip
    """An update over lists of which some lie in host memory: a few at a time are fetched, updated and stowed.

    Args:
        update_: What updates in place (`in_place`, `fused`).
        ps: Parameters, on the device or in host memory.
        gs: Their gradients, on the device.
        states_and_step: The lists of states, on the device or in host memory, and the number of the step.
        options: Of the update.
    """
    *states, step = states_and_step
    start = size = 0
    for row, held in enumerate(zip(ps, *states, strict=True), 1):
        size += sum(tensor.nbytes for tensor in held)
        if size >= _CHUNK_BYTES or row == len(ps):
            homes = [column[start:row] for column in (ps, *states)]
            device = gs[start].device
            fetched = [[tensor.to(device, non_blocking=True) for tensor in column] for column in homes]
            update_(fetched[0], gs[start:row], *fetched[1:], step, **options)
            for column, copies in zip(homes, fetched, strict=True):
                for home, copy in zip(column, copies, strict=True):
                    if home is not copy:
                        home.copy_(copy)
            start, size = row, 0


def _scaled(columns: list[list[Tensor]], scale: Tensor | None) -> Iterator[list[list[Tensor]]]:
    """The rows in chunks, with gradients multiplied by `scale`."""
    if scale is None:
        yield columns
        return
    start = size = 0
    for row, g in enumerate(columns[1], 1):
        size += g.nbytes
        if size >= _CHUNK_BYTES or row == len(columns[1]):
            p, gs, *states = (column[start:row] for column in columns)
            yield [p, torch.ops.aten._foreach_mul.Tensor(gs, scale), *states]
            start, size = row, 0


@contextmanager
def _columns(ps: Sequence[Tensor], gs: Sequence[Tensor], *states: Sequence[Tensor]) -> Iterator[dict]:
    """The columns, one group per dtype of parameter, as the fused kernels want them.

    The kernels walk memory, so all tensors of a row must lie alike: a gradient laid out otherwise is copied, and of
    a row whose parameter lies otherwise than its states (a piece cut along an inner dim) all are, and written back.
    """
    groups: dict[torch.dtype, list[list[Tensor]]] = defaultdict(lambda: [[] for _ in range(2 + len(states))])
    borrowed: list[tuple[Tensor, Tensor]] = []
    for p, g, *state in zip(ps, gs, *states, strict=True):
        row = [p, *state]
        if any(tensor.stride() != p.stride() for tensor in state) or not _is_dense(p):
            row = [tensor.contiguous() for tensor in row]
            borrowed += [
                (mine, work) for mine, work in zip((p, *state), row, strict=True) if mine is not work
            ]
        if g.dtype != p.dtype or g.stride() != row[0].stride():
            g = torch.empty_like(row[0]).copy_(g)
        for column, tensor in zip(groups[p.dtype], (row[0], g, *row[1:]), strict=True):
            column.append(tensor)
    yield groups
    for mine, work in borrowed:
        mine.copy_(work)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without holes, in any order of dims."""
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)
