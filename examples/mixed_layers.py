"""A plan no plan string can express, on three devices.

Device 0 computes the embedding and layer 0 alone. Layers 1 and 2 run on devices 1 and 2: layer 1 cuts its heads
unevenly (device 1 takes three of four) and its feed-forward columns, layer 2 cuts the batch instead. Layer 3 and the
loss go back to device 0, which has been idle, and the four micro-batches flow through in GPipe's order.

    superscaler check models/gpt.py:tiny --cluster local:3 --plan examples/mixed_layers.py:mixed_layers
"""

from superscaler.planner import schedules


def mixed_layers(p):
    """Four layers over three devices, three ways."""
    alone, pair = p.mesh([0], x=1), p.mesh([1, 2], x=2)
    for layer, mesh in zip(("h.0", "h.1", "h.2", "h.3"), (alone, pair, pair, alone), strict=True):
        p.assign(p.select(layer), mesh)
    p.trans(p.select("h.1.attn").axis("heads"), "x", pieces=(3, 1))
    p.trans(p.select("h.1.mlp.up").axis("out"), "x")
    p.trans(p.axis("batch"), "x", within=p.select("h.2"))
    p.order(schedules.gpipe(4))
