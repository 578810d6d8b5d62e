"""The solver of the search: OR-Tools CP-SAT behind a few words; no other file of the search names it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ortools.sat.python import cp_model

SEED = 0


@dataclass(frozen=True)
class Found:
    """A solution, and the bound that is proved."""

    objective: float
    bound: float
    solver: Any

    def value(self, variable: Any) -> int:
        """What a variable is."""
        return self.solver.value(variable)


class Model:
    """An integer program, solved alike every time."""

    def __init__(self) -> None:
        self._model = cp_model.CpModel()

    def integer(self, least: int, most: int) -> Any:
        """A variable."""
        return self._model.new_int_var(least, most, "")

    def element(self, table: Sequence[int], index: Any) -> Any:
        """The element of a table at a variable place."""
        value = self.integer(min(table), max(table))
        self._model.add_element(index, table, value)
        return value

    def add(self, constraint: Any) -> None:
        """Demand something."""
        self._model.add(constraint)

    def minimize(self, objective: Any, time_limit: float) -> Found | None:
        """The least value found in the time; None where there is none.

        Raises:
            TimeoutError: None was found in the time, and none was ruled out.
        """
        self._model.minimize(objective)
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = time_limit
        solver.parameters.random_seed = SEED
        solver.parameters.num_workers = 1
        status = solver.solve(self._model)
        if status == cp_model.UNKNOWN:
            raise TimeoutError
        if status == cp_model.INFEASIBLE:
            return None
        assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE), solver.status_name(status)
        return Found(solver.objective_value, solver.best_objective_bound, solver)
