"""models/swin.py is Swin: published sizes, the logits of transformers' SwinForImageClassification."""

from math import log

import pytest
import torch
from torch import nn

from models import swin

# Parameters of the checkpoints of the paper's authors, as timm counts them (swin_tiny_patch4_window7_224, ...);
# the paper (arXiv 2103.14030, table 1) rounds to 29, 50, 88 and 197 million.
PUBLISHED = {"swin-t": 28_288_354, "swin-s": 49_606_258, "swin-b": 87_768_224, "swin-l": 196_532_476}
ROUNDED = {"swin-355m": "355m", "swin-1.8b": "1.8b", "swin-2.6b": "2.6b", "swin-5.9b": "5.9b"}


def count(size):
    """Parameters, with the biases of k that softmax cancels."""
    with torch.device("meta"):
        model = swin.build(size)
    biases = sum(block.attn.k.out_features for stage in model.stages for block in stage.blocks)
    return biases + sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_are_the_published_ones_less_the_biases_of_k(size):
    assert count(size) == PUBLISHED[size]


@pytest.mark.parametrize("size", ROUNDED)
def test_larger_sizes_have_the_parameters_of_their_names(size):
    total = count(size)
    assert size.removeprefix("swin-") == (f"{total / 1e9:.1f}b" if total > 1e9 else f"{total / 1e6:.0f}m")


def theirs(transformers, model, row):
    """SwinForImageClassification with the weights of `model`, and zero biases of k."""
    config = transformers.SwinConfig(
        image_size=row["image"],
        patch_size=row["patch"],
        embed_dim=row["channels"],
        depths=list(row["depths"]),
        num_heads=list(row["heads"]),
        window_size=row["window"],
        num_labels=row["classes"],
        drop_path_rate=0.0,
    )
    reference = transformers.SwinForImageClassification(config).double()
    names = {
        "embed.proj": "swin.embeddings.patch_embeddings.projection", "embed.norm": "swin.embeddings.norm",
        "stages.": "swin.encoder.layers.", "merge.norm": "downsample.norm", "merge.proj": "downsample.reduction",
        "norm_1": "layernorm_before", "norm_2": "layernorm_after", "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2", "attn.q": "attention.q_proj", "attn.k": "attention.k_proj",
        "attn.v": "attention.v_proj", "attn.proj": "attention.o_proj",
        "attn.bias.weight": "attention.relative_position_bias.relative_position_bias_table", "head.": "classifier.",
    }  # fmt: skip
    weights = {}
    for name, value in model.state_dict().items():
        if ".merge." in name:  # theirs merges at the end of a stage, ours at the start of the next
            stage = int(name.split(".")[1])
            name = name.replace(f"stages.{stage}", f"stages.{stage - 1}")
        for ours, word in names.items():
            name = name.replace(ours, word)
        name = f"swin.layer{name}" if name.startswith("norm.") else name
        weights[name] = value
        if "k_proj.weight" in name:
            weights[name.replace("weight", "bias")] = torch.zeros(len(value))
    projection = "swin.embeddings.patch_embeddings.projection.weight"
    weights[projection] = weights[projection].reshape(-1, 3, row["patch"], row["patch"])
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {name.rpartition(".")[2] for name in missing} <= {"relative_position_index"}
    return reference.eval()


@pytest.mark.parametrize(
    "changed",
    [{}, {"image": 48, "window": 3, "depths": (3, 2), "heads": (4, 8)}, {"depths": (1, 1)}],
)
def test_logits_loss_and_gradients_are_those_of_transformers(transformers, changed):
    torch.manual_seed(0)
    model = swin.build("tiny", **changed).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    reference = theirs(transformers, model, {**swin.SIZES["tiny"], **changed})
    inputs = swin.example_inputs("tiny", batch=3, **changed)
    images, targets = inputs["images"].double(), inputs["targets"]
    expected = reference(images, labels=targets)
    torch.testing.assert_close(model(images), expected.logits, rtol=1e-10, atol=1e-10)
    model(images, targets).backward()
    expected.loss.backward()
    table = (
        reference.swin.encoder.layers[0]
        .blocks[0]
        .attention.relative_position_bias.relative_position_bias_table
    )
    torch.testing.assert_close(
        model.stages[0].blocks[0].attn.bias.weight.grad, table.grad, rtol=1e-9, atol=1e-12
    )


def test_patches_of_opposite_edges_do_not_see_each_other():
    apart = swin.apart(8, 4, 2, torch.device("cpu"))
    assert not apart[0].any(), "the first window lies within the image"
    assert apart[1].any()
    assert apart.shape == (4, 16, 16)
    # the last window is cut both ways: its patches see those of their own quarter, themselves included
    assert torch.equal((~apart[3]).sum(-1), torch.full((16,), 4))


def test_loss_at_the_start_is_that_of_a_guess():
    torch.manual_seed(0)
    assert swin.build("tiny")(**swin.example_inputs("tiny")).item() == pytest.approx(log(10), abs=0.1)


def test_dropout_is_off_by_default_and_can_be_asked_for():
    images = swin.example_inputs("tiny", batch=1)["images"]
    plain, dropping = swin.build("tiny"), swin.build("tiny", dropout=0.5)
    assert torch.equal(plain(images), plain(images))
    assert not torch.equal(dropping(images), dropping(images))


def test_windows_must_fill_the_image():
    with pytest.raises(ValueError, match="no multiple of the window 3"):
        swin.build("tiny", window=3)


def test_an_unknown_size_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no size 'huge'.*swin-5.9b"):
        swin.build("huge")
