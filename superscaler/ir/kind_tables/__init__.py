"""The operator tables, a file per family; `superscaler.ir.kinds` joins them.

To add an operator, add a row. A rule is text where one line can say it, else a function from the operator's call
and shapes to such text; functions that serve several families are in `superscaler.ir.shape_rules`.
"""
