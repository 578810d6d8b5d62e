from collections import Counter
from dataclasses import replace

import pytest

from superscaler.errors import VerificationError
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.planner.exchange import Move, exchange_moves, verify_exchange
from superscaler.planner.steps import Step, StepKind

PAIR, OTHER = Mesh((0, 1), (("tp", 2),)), Mesh((4, 5, 6, 7), (("tp", 4),))


def exchange(before, after):
    return Step(StepKind.EXCHANGE, before, after)


def test_readers_copy_from_themselves_what_they_hold():
    step = exchange(Layout(PAIR, (6,), (("tp",),), pieces=((2, 4),)), Layout(PAIR, (6,), (("tp",),)))
    assert exchange_moves(step) == (
        Move(0, 0, ((0, 2),), ((0, 2),)),
        Move(1, 0, ((0, 1),), ((2, 3),)),
        Move(1, 1, ((1, 4),), ((0, 3),)),
    )


def test_replicas_share_the_sending_evenly():
    moves = exchange_moves(exchange(Layout(PAIR, (8,), ((),)), Layout(OTHER, (8,), ((),))))
    assert Counter(move.source for move in moves) == {0: 2, 1: 2}


def test_every_summand_reaches_every_reader_of_the_sum():
    step = exchange(Layout(PAIR, (8,), ((),), ("tp",)), Layout(OTHER, (8,), (("tp",),)))
    moves = exchange_moves(step)
    assert {(move.source, move.target) for move in moves} == {(s, t) for s in (0, 1) for t in (4, 5, 6, 7)}
    verify_exchange(step, moves)


def test_summands_that_stay_summands_go_to_their_own_readers():
    other = Mesh((6, 7), (("tp", 2),))
    step = exchange(Layout(PAIR, (8,), ((),), ("tp",)), Layout(other, (8,), ((),), ("tp",)))
    assert [(move.source, move.target) for move in exchange_moves(step)] == [(0, 6), (1, 7)]


def test_unequal_micro_batches_have_moves_of_their_own():
    mesh, other = Mesh((0,), (), 2), Mesh((1,), (), 2)
    step = exchange(Layout(mesh, (7,), ((TIME,),)), Layout(other, (7,), ((TIME,),)))
    assert [exchange_moves(step, t)[0].num_elements for t in (0, 1)] == [3, 4]


def test_scalars_move_as_one_element():
    step = exchange(Layout(PAIR, (), ()), Layout(OTHER, (), ()))
    moves = exchange_moves(step)
    verify_exchange(step, moves)
    assert [move.num_elements for move in moves] == [1] * 4


STEP = exchange(Layout(PAIR, (8,), (("tp",),)), Layout(OTHER, (8,), (("tp",),)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda moves: moves[1:], r"device 4 gets 0 elements"),
        (lambda moves: moves + moves[-1:], r"device 7 gets elements of \[6:8\] twice"),
        (
            lambda moves: (replace(moves[0], source_box=((1, 3),)), *moves[1:]),
            "puts elements where others belong",
        ),
        (
            lambda moves: (replace(moves[0], source_box=((0, 3),), target_box=((0, 3),)), *moves[1:]),
            "leaves the pieces",
        ),
    ],
)
def test_moves_that_do_not_cover_the_target_once_are_refused(damage, message):
    moves = exchange_moves(STEP)
    verify_exchange(STEP, moves)
    with pytest.raises(VerificationError, match=message):
        verify_exchange(STEP, damage(moves))
