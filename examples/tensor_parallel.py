"""Megatron-style tensor parallelism, by hand: attention heads, feed-forward columns and the vocabulary.

superscaler check models/gpt.py:tiny --cluster local:2 --plan examples/tensor_parallel.py:tensor_parallel
"""


def tensor_parallel(p):
    """Cut what Megatron cuts."""
    p.assign(p.everything(), p.mesh(p.cluster.devices, tp=p.cluster.num_devices))
    p.trans(p.axis("heads"), "tp")  # q, k, v, attention and its projection, forward and backward
    p.trans(p.select("h.*.mlp.up").axis("out"), "tp")  # and so the rows of mlp.down
    p.trans(p.select("wte").axis("vocab"), "tp")  # the embedding, the logits and the loss
