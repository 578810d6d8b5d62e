"""Co-shard, the plan of SuperScaler for large activations (arXiv 2301.08984): one piece of a layer exists at a time.

superscaler check models/swin.py:tiny --cluster local:2 --plan examples/co_shard.py:co_shard
"""


def co_shard(p):
    """Data parallel; in the first stage, where images are largest, heads and hidden units run piece after piece."""
    p.assign(p.everything(), p.mesh(p.cluster.devices, dp=p.cluster.num_devices))
    p.trans(p.axis("batch"), "dp")
    for block in range(2):
        p.co_shard(p.select(f"stages.0.blocks.{block}.attn"), pieces=2)
        p.co_shard(p.select(f"stages.0.blocks.{block}.mlp"), pieces=4)
