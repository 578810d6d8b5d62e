"""Named schedules as short programs of orders; and everything a plan script says about time, ``ss.schedules``.

Every named schedule is for a pipeline of a certain form: which rows of devices run which stages, see `NAMED`.
"""

from superscaler.planner.pipeline import Costs, Pipeline, ScheduleMaker
from superscaler.planner.schedule import Schedule, Task, order_tasks, parse_schedule
from superscaler.planner.schedules.interlaced import interlaced, interlaced_ahead
from superscaler.planner.schedules.maker import Given
from superscaler.planner.schedules.one_stage_per_row import gpipe, one_f_one_b, zb_h1, zb_h2
from superscaler.planner.schedules.several_stages_per_row import (
    bidirectional,
    interleaved,
    three_f_one_b,
    zb_v,
)
from superscaler.planner.schedules.solved import solved
from superscaler.planner.schedules.table import NAMED, NamedSchedule

__all__ = [
    "NAMED", "Costs", "Given", "NamedSchedule", "Pipeline", "Schedule", "ScheduleMaker", "Task", "bidirectional",
    "gpipe", "interlaced", "interlaced_ahead", "interleaved", "one_f_one_b", "order_tasks", "parse_schedule", "solved",
    "three_f_one_b", "zb_h1", "zb_h2", "zb_v",
]  # fmt: skip
