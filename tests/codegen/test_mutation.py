import pytest

from benchmarks.mutation import mutate


@pytest.mark.parametrize(
    "name",
    [
        "dp=2,tp=2",
        "dp=2,zero=3",
        "dp=2,zero=1,offload=optimizer",
        "pp=2,schedule=zb-h1,micro_batches=2,offload=activations",
        "tp=2,offload=parameters",
        "dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4",
        "script: dp=2 then dp=4",
        "pp=2,schedule=zb-v,micro_batches=2",
        "pp=2,schedule=interlaced,micro_batches=2",
    ],
)
def test_every_harmful_mutant_is_rejected(name):
    row = mutate(name, sample=25)
    assert row["accepted"]
    assert row["harmful"] > 10
    assert row["missed"] == row["crashes"] == 0, row["examples"]
