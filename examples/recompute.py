"""Activation recomputation by hand: every layer but the last, whose backward comes at once, runs again.

superscaler check models/gpt.py:tiny --cluster local:2 --plan examples/recompute.py:all_but_the_last_layer
"""

from superscaler.planner.schedules import gpipe


def all_but_the_last_layer(p):
    """Data parallel, two micro-batches; of a layer that runs again only its input is stored."""
    p.assign(p.everything(), p.mesh(p.cluster.devices, dp=p.cluster.num_devices))
    p.trans(p.axis("batch"), "dp")
    for layer in range(3):
        p.recompute(p.select(f"h.{layer}"))
    p.order(gpipe(2))
