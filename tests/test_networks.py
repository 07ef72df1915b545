"""train/networks.py against the published figures and numpy: shapes, norms, dropout, padding."""

# ruff: noqa: E402  (torch may be missing: the imports come after the skip)
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pix2pix_fast.train import networks
from pix2pix_fast.train.networks import (
    BatchNorm,
    ImageNorm,
    PatchGAN,
    ResNet,
    UNet,
    keep_mask,
    pad_to_multiple,
)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: UNet(norm="batch"), 54_413_955),
        (lambda: UNet(norm="instance"), 54_409_603),
        (lambda: UNet(depth=7), 41_828_995),
        (lambda: ResNet(blocks=9), 11_383_427),
        (lambda: ResNet(blocks=9, norm="instance"), 11_378_179),
        (lambda: ResNet(blocks=6), 7_841_411),
        (lambda: PatchGAN(6, n=3), 2_768_705),
    ],
)
def test_parameter_counts_are_the_published_ones(make, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


@pytest.mark.parametrize("n", range(7))
def test_receptive_field_measured_by_gradients(n):
    """All weights positive, no norm: the gradient of one logit reaches exactly its field."""
    d = PatchGAN(1, n=n, ndf=1, norm="none").double()
    for p in d.parameters():
        torch.nn.init.constant_(p, 0.1)
    field = PatchGAN.RECEPTIVE_FIELDS[n]
    size = 2 ** max(n, 1) * (field // 2**n + 4) * 2
    x = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    y = d(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    reached = x.grad[0, 0] != 0
    rows, columns = reached.any(1).nonzero(), reached.any(0).nonzero()
    assert int(rows.max() - rows.min()) + 1 == field
    assert int(columns.max() - columns.min()) + 1 == field


@pytest.mark.parametrize(("n", "side"), list(enumerate([256, 126, 62, 30, 14, 6, 2])))
def test_discriminator_output_on_256(n, side):
    with torch.device("meta"):
        assert PatchGAN(6, n=n, ndf=4)(torch.empty(1, 6, 256, 256)).shape == (1, 1, side, side)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("depth", range(2, 10))
def test_unet_of_any_depth_and_channels(depth, skips):
    with torch.device("meta"):
        net = UNet(1, 4, depth=depth, ngf=2, skips=skips)
        size = 2**depth
        shapes = {
            name: tuple(y.shape[1:])
            for name, y in net.activations(torch.empty(1, 1, size, 2 * size)).items()
        }
    for k in range(1, depth + 1):
        width = 2 * min(2 ** (k - 1), 8)
        assert shapes[f"e{k}"] == (width, size >> k, 2 * size >> k)
    assert shapes[f"d{depth}"] == (4, size, 2 * size)
    assert list(shapes) == [f"e{k}" for k in range(1, depth + 1)] + [
        f"d{k}" for k in range(1, depth + 1)
    ]


def test_layers_without_a_norm():
    net = UNet(depth=4, ngf=2)
    normed = [name for name in net.names if "norm" in net.get_submodule(name)]
    assert normed == ["e2", "e3", "d1", "d2", "d3"]
    assert "norm" in UNet(depth=4, ngf=2, bottleneck_norm=True).e4


def test_image_norm_equals_batch_norm_on_one_image():
    x = torch.randn(1, 5, 6, 7, dtype=torch.float64) * 3 + 1
    batch, image = BatchNorm(5).double(), ImageNorm(5).double()
    for norm in (batch, image):
        torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
        torch.nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(image(x), batch(x), rtol=1e-12, atol=1e-12)


def test_image_norm_keeps_images_apart():
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    norm = ImageNorm(4).double()
    whole = norm(x)
    for i in range(3):
        torch.testing.assert_close(whole[i : i + 1], norm(x[i : i + 1]), rtol=0, atol=1e-15)
    mean, var = x.numpy().mean((2, 3), keepdims=True), x.numpy().var((2, 3), keepdims=True)
    np.testing.assert_allclose(
        whole.detach().numpy(), (x.numpy() - mean) / np.sqrt(var + 1e-5), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("make", [BatchNorm, ImageNorm])
def test_a_single_value_normalises_to_the_bias(make):
    norm = make(3)
    torch.nn.init.constant_(norm.bias, 0.25)
    y = norm(torch.randn(1, 3, 1, 1))
    assert torch.equal(y, torch.full((1, 3, 1, 1), 0.25))


@pytest.mark.parametrize(
    "make",
    [lambda: UNet(depth=3, ngf=4, dropout=("d2",)), lambda: ResNet(ngf=4, blocks=6, dropout=True)],
)
def test_image_twin_shares_weights_and_needs_no_batch(make):
    net = make().double().train()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    twin = networks.image_twin(net)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in net.parameters()}
    assert net.training and not twin.training
    torch.testing.assert_close(twin(x)[2:], twin(x[2:]), rtol=1e-10, atol=1e-12)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(net(x[:1]), twin(x[:1]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("style", "depth", "places"),
    [
        ("junyanz", 8, ("d2", "d3", "d4")),
        ("junyanz", 7, ("d2", "d3")),
        ("junyanz", 5, ()),
        ("paper", 8, ("d1", "d2", "d3")),
        ("none", 8, ()),
    ],
)
def test_dropout_places(style, depth, places):
    assert networks.dropout_places(style, depth) == places


def test_keep_mask_restates_the_counter_hash():
    """Python's unlimited integers against the uint64 arithmetic of numpy."""
    mask = (1 << 64) - 1

    def top_bit(seed, frame, layer, element):
        z = seed + 0x9E3779B97F4A7C15 * (frame + 1) + 0xD1B54A32D192ED03 * (layer + 1)
        z = (z + 0x8CB92BA72F3D8DD7 * (element + 1)) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return bool((z ^ z >> 31) >> 63)

    seed, frame, layer, (h, w, c) = 2**64 - 3, 5, 9, (3, 4, 5)
    keep = keep_mask(seed, frame, layer, h, w, c)
    for y in range(h):
        for x in range(w):
            for k in range(c):
                assert keep[k, y, x] == top_bit(seed, frame, layer, (y * w + x) * c + k)
    assert 0.45 < keep_mask(0, 0, 0, 64, 64, 8).mean() < 0.55


def test_seeded_dropout_counts_frames_through_a_batch():
    net = UNet(depth=3, ngf=4, norm="image", dropout=("d1", "d2")).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    both = net(x, seed=7, frame=3)
    torch.testing.assert_close(both[1:], net(x[1:], seed=7, frame=4), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(both, net(x))


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 5), (3, 8), (9, 17), (16, 16)])
def test_pad_to_multiple_is_numpys_reflect(h, w):
    x = torch.arange(2.0 * h * w).reshape(1, 2, h, w)
    y = pad_to_multiple(x, 16).numpy()
    for axis, size in ((2, h), (3, w)):
        assert y.shape[axis] == -(-size // 16) * 16
    pad = [(0, 0), (0, 0), (0, -h % 16), (0, -w % 16)]
    expected = x.numpy()
    for axis, size in ((2, h), (3, w)):
        one = [p if a == axis else (0, 0) for a, p in enumerate(pad)]
        expected = np.pad(expected, one, mode="edge" if size == 1 else "reflect")
    np.testing.assert_array_equal(y, expected)


def test_translate_keeps_any_size():
    net = UNet(depth=4, ngf=2, norm="image").eval()
    for h, w in ((1, 1), (5, 33), (16, 16)):
        assert net.translate(torch.zeros(1, 3, h, w)).shape == (1, 3, h, w)


def test_tensors_go_out_and_come_back():
    for norm in networks.NORMS:
        net = UNet(depth=3, ngf=2, norm=norm, bottleneck_norm=True)
        networks.init_weights(net, generator=torch.Generator().manual_seed(0))
        tensors = net.to_tensors()
        again = UNet(depth=3, ngf=2, norm=norm, bottleneck_norm=True)
        again.load_tensors(tensors)
        for name, value in net.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name
        assert all(value.dtype == np.float32 for value in tensors.values())
        assert ("e2.norm.mean" in tensors) == (norm == "batch")


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match="depth is 2 to 9, got 10"):
        UNet(depth=10)
    with pytest.raises(ValueError, match="n is 0 to 6, got 7"):
        PatchGAN(n=7)
    with pytest.raises(ValueError, match="norm is one of"):
        UNet(depth=2, norm="layer")
    with pytest.raises(ValueError, match="layers that do not exist: d9"):
        UNet(depth=3, dropout=("d9",))
    with pytest.raises(ValueError, match=r"e1\.weight is missing"):
        UNet(depth=2, ngf=2).load_tensors({})
