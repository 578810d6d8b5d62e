"""Give rules: operators without a row in the operator table get the rule an experiment finds, or the declared one."""

import logging
from dataclasses import replace

import torch

from superscaler.errors import TraceError
from superscaler.ir.custom_operator import is_custom
from superscaler.ir.find_rule import FoundRule, find_rule, why_false
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.isolated import Crashed
from superscaler.ir.kinds import KINDS, Kind
from superscaler.ir.letters import RuleText
from superscaler.ir.rule_cache import RuleCache
from superscaler.ir.rules import RuleMismatch
from superscaler.ir.sample_call import CallShape, NotRepeatable, NotRunnable

log = logging.getLogger("superscaler")


def give_rules(graph: Graph) -> Graph:
    """The graph with a rule for every operator of a kind without a row, and declared rules checked.

    Raises:
        TraceError: An operator cannot be run here and has no declared rule; it draws random numbers; or the
            declared rule is false.
    """
    if all(operator.kind in KINDS and not KINDS[operator.kind].declared for operator in graph.operators):
        return graph
    rules = _Rules(graph)
    return graph.with_operators(tuple(map(rules.give, graph.operators)))


class _Rules:
    """The rules of one graph's operators, each found once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.cache = RuleCache()
        self.known: dict[str, RuleText] = {}
        self.said: set[tuple[str, str]] = set()

    def give(self, operator: Operator) -> Operator:
        """The operator with a rule of its own, if its kind has no row to be trusted."""
        row = KINDS.get(operator.kind)
        is_trusted = row is not None and not row.declared
        if is_trusted or "." not in operator.kind:
            return operator  # of this package's own operators, verify_graph says that one lacks its row
        call = _call_shape(operator, self.graph)
        key = repr((call, row))
        if key not in self.known:
            self.known[key] = self._declared(operator, call, row) if row else self._found(operator, call)
        return replace(operator, rule=self.known[key].text, shape_argument=self.known[key].shape_argument)

    def _found(self, operator: Operator, call: CallShape) -> RuleText:
        if _draws(operator.kind):
            raise _random(operator)
        found = self.cache.get(call)
        if found is None:
            try:
                found = find_rule(call)
            except (NotRunnable, Crashed) as error:
                raise _unknown(operator, str(error)) from None
            except NotRepeatable:
                raise _random(operator) from None
            self._say(operator.kind, found)
            self.cache.put(call, found)
        return found.rule

    def _say(self, kind: str, found: FoundRule) -> None:
        if (kind, found.rule.text) not in self.said:
            self.said.add((kind, found.rule.text))
            log.warning(
                'found a rule for %s: "%s" (%d experiments); to declare it: %s',
                kind, found.rule.text, found.experiments, found.line(),
            )  # fmt: skip

    def _declared(self, operator: Operator, call: CallShape, row: Kind) -> RuleText:
        assert isinstance(row.rule, str)
        rule = RuleText(row.rule, row.shape_argument)
        try:
            wrong = why_false(call, rule)
        except RuleMismatch as mismatch:
            wrong = str(mismatch)
        except (NotRunnable, Crashed) as error:
            log.warning("the rule declared for %s is believed, not checked: %s", operator.kind, error)
            return rule
        except NotRepeatable:
            raise _random(operator) from None
        if not wrong:
            return rule
        shown = find_rule(call).line()
        raise TraceError(
            f'the rule declared for {operator.kind}, "{rule.text}", is false: {wrong}',
            where=operator.source,
            remedy=f"declare what experiments show: {shown}",
        )


def _draws(kind: str) -> bool:
    """Whether torch says of an operator that it draws random numbers."""
    namespace, name, overload = (*kind.split("."), "default")[:3]
    function = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return torch.Tag.nondeterministic_seeded in function.tags


def _call_shape(operator: Operator, graph: Graph) -> CallShape:
    """The call without what does not matter to it: names, phase and place in the user's code."""
    reads = [graph.tensors[name] for name in operator.reads]
    writes = [graph.tensors[name] for name in operator.writes]
    bare = Operator(
        "call",
        operator.kind,
        tuple(f"read{i}" for i in range(len(reads))),
        tuple(f"write{i}" for i in range(len(writes))),
        operator.arguments,
        operator.keywords,
    )
    dtypes = tuple(getattr(torch, tensor.dtype) for tensor in reads)
    return CallShape(bare, tuple(t.shape for t in reads), dtypes, tuple(t.shape for t in writes))


def _unknown(operator: Operator, why: str) -> TraceError:
    where = "register a CPU implementation" if is_custom(operator.kind) else "trace where it runs"
    return TraceError(
        f"the operator {operator.name!r} is of a kind without a rule, {operator.kind}, and none can be found: "
        f"it cannot be run on this machine ({why.strip().splitlines()[0] if why.strip() else 'no reason given'})",
        where=operator.source,
        remedy=f'declare its rule: @ss.rule("b s d -> b s d") above its definition, or '
        f'ss.rule("b s d -> b s d")("{operator.kind}"); or {where}',
    )


def _random(operator: Operator) -> TraceError:
    return TraceError(
        f"the operator {operator.name!r} of kind {operator.kind} gives other results for the same values: "
        "its pieces would not be those of the whole",
        where=operator.source,
        remedy="draw random numbers outside of the model and pass them in, or use F.dropout, which every plan "
        "computes alike",
    )
