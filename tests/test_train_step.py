"""One training step against a restatement of the published objective that shares no code with
train/.

The networks are written a second time here in junyanz's recursive form, and get their weights
through `junyanz.generator_state`, so this also tests that his layout is written right. Losses are
written as in the papers (logarithms of sigmoids, squares, means), Adam's first step by hand.
Everything in float64.
"""

# ruff: noqa: E402  (torch may be missing: the imports come after the skip)
from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from pix2pix_fast.train import junyanz, recipes
from pix2pix_fast.train.losses import Objective
from pix2pix_fast.train.networks import PatchGAN, ResNet, UNet, init_weights
from pix2pix_fast.train.trainer import Trainer, TrainingStopped
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


RTOL, ATOL = 1e-8, 1e-11  # float64, thousands of sums; gradients of order 1e-3 to 1


# ---- junyanz's networks, second writing ----


def norm_layer(kind, c):
    return {
        "batch": lambda: nn.BatchNorm2d(c),
        "instance": lambda: nn.InstanceNorm2d(c, affine=False, track_running_stats=False),
        "none": nn.Identity,
    }[kind]()


class Block(nn.Module):
    def __init__(self, outer, inner, sub, kind, norm, inputs=None, dropout=False):
        super().__init__()
        self.outermost = kind == "outermost"
        inputs = inputs or outer
        bias = norm == "instance"
        down = nn.Conv2d(inputs, inner, 4, 2, 1, bias=bias)
        leaky, relu = nn.LeakyReLU(0.2, True), nn.ReLU(True)
        if kind == "outermost":
            up = nn.ConvTranspose2d(inner * 2, outer, 4, 2, 1)
            parts = [down, sub, relu, up, nn.Tanh()]
        elif kind == "innermost":
            up = nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=bias)
            parts = [leaky, down, relu, up, norm_layer(norm, outer)]
        else:
            up = nn.ConvTranspose2d(inner * 2, outer, 4, 2, 1, bias=bias)
            parts = [leaky, down, norm_layer(norm, inner), sub, relu, up, norm_layer(norm, outer)]
            parts += [nn.Dropout(0.5)] * dropout
        self.model = nn.Sequential(*parts)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class JunyanzUnet(nn.Module):
    def __init__(self, ci, co, depth, ngf, norm):
        super().__init__()
        block = Block(ngf * 8, ngf * 8, None, "innermost", norm)
        for _ in range(depth - 5):
            block = Block(ngf * 8, ngf * 8, block, "middle", norm, dropout=True)
        for width in (4, 2, 1):
            block = Block(ngf * width, ngf * width * 2, block, "middle", norm)
        self.model = Block(co, ngf, block, "outermost", norm, inputs=ci)

    def forward(self, x):
        return self.model(x)


class JunyanzResBlock(nn.Module):
    def __init__(self, c, norm, dropout):
        super().__init__()
        bias = norm == "instance"
        parts = [nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3, bias=bias), norm_layer(norm, c)]
        parts += [nn.ReLU(True), *[nn.Dropout(0.5)] * dropout]
        parts += [nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3, bias=bias), norm_layer(norm, c)]
        self.conv_block = nn.Sequential(*parts)

    def forward(self, x):
        return x + self.conv_block(x)


def junyanz_resnet(ci, co, g, blocks, norm, dropout):
    bias = norm == "instance"
    parts = [nn.ReflectionPad2d(3), nn.Conv2d(ci, g, 7, bias=bias), norm_layer(norm, g), nn.ReLU()]
    for m in (1, 2):
        parts += [nn.Conv2d(g * m, g * m * 2, 3, 2, 1, bias=bias), norm_layer(norm, g * m * 2)]
        parts += [nn.ReLU()]
    parts += [JunyanzResBlock(g * 4, norm, dropout) for _ in range(blocks)]
    for m in (4, 2):
        parts += [nn.ConvTranspose2d(g * m, g * m // 2, 3, 2, 1, 1, bias=bias)]
        parts += [norm_layer(norm, g * m // 2), nn.ReLU()]
    parts += [nn.ReflectionPad2d(3), nn.Conv2d(g, co, 7), nn.Tanh()]
    net = nn.Module()
    net.model = nn.Sequential(*parts)
    net.forward = net.model.forward
    return net


def junyanz_d(ci, n, ndf, norm):
    bias = norm == "instance"
    net = nn.Module()
    if n == 0:
        parts = [nn.Conv2d(ci, ndf, 1), nn.LeakyReLU(0.2), nn.Conv2d(ndf, ndf * 2, 1, bias=bias)]
        parts += [norm_layer(norm, ndf * 2), nn.LeakyReLU(0.2)]
        parts += [nn.Conv2d(ndf * 2, 1, 1, bias=bias)]
        net.net = nn.Sequential(*parts)
        net.forward = net.net.forward
        return net
    parts, have = [nn.Conv2d(ci, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)], ndf
    for k in range(1, n + 1):
        co = ndf * min(2**k, 8)
        parts += [nn.Conv2d(have, co, 4, 2 if k < n else 1, 1, bias=bias), norm_layer(norm, co)]
        parts += [nn.LeakyReLU(0.2, True)]
        have = co
    net.model = nn.Sequential(*parts, nn.Conv2d(have, 1, 4, 1, 1))
    net.forward = net.model.forward
    return net


# ---- his layout ----


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("depth", [5, 7])
def test_unet_in_junyanz_layout_is_the_same_network(depth, norm):
    net = UNet(3, 2, depth=depth, ngf=2, norm=norm)
    init_weights(net)
    other = JunyanzUnet(3, 2, depth, 2, norm)
    other.load_state_dict(junyanz.generator_state(net), strict=True)
    for module in other.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(1, 3, 2 * 2**depth, 2**depth if norm != "instance" else 2 * 2**depth)
    torch.testing.assert_close(net(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("blocks", "norm"), [(6, "batch"), (9, "instance")])
def test_resnet_in_junyanz_layout_is_the_same_network(blocks, norm, dropout):
    net = ResNet(3, 1, ngf=4, blocks=blocks, norm=norm, dropout=dropout)
    init_weights(net)
    other = junyanz_resnet(3, 1, 4, blocks, norm, dropout)
    other.load_state_dict(junyanz.generator_state(net), strict=True)
    if dropout:
        net.eval()
        other.eval()
    x = torch.randn(1, 3, 32, 24)
    torch.testing.assert_close(net(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (UNet(depth=5, ngf=2, skips=False), "without skips"),
        (UNet(depth=5, ngf=2, bottleneck_norm=True), "no norm on e5"),
        (UNet(depth=5, ngf=2, eps=1e-3), "eps 1e-5"),
        (UNet(depth=4, ngf=2), "at least 5 levels"),
        (UNet(depth=5, ngf=2, tanh=False), "tanh"),
        (ResNet(ngf=2, blocks=6, eps=1e-3), "eps 1e-5"),
        (ResNet(ngf=2, blocks=6, tanh=False), "ResNet ends in tanh"),
        (ResNet(ngf=2, blocks=7), "6 or 9 blocks"),
        (PatchGAN(ndf=2, eps=1e-3), "eps 1e-5"),
    ],
)
def test_what_his_code_cannot_hold_is_refused(net, words):
    write = junyanz.discriminator_state if isinstance(net, PatchGAN) else junyanz.generator_state
    with pytest.raises(ValueError, match=words):
        write(net)


# ---- one step ----


def gan_losses(kind):
    """D on real, D on fake, G on fake, as the papers write them."""
    sigmoid = torch.sigmoid
    return {
        "vanilla": (
            lambda p: -torch.log(sigmoid(p)).mean(),
            lambda p: -torch.log(1 - sigmoid(p)).mean(),
            lambda p: -torch.log(sigmoid(p)).mean(),
        ),
        "lsgan": (
            lambda p: torch.mean((p - 1) * (p - 1)),
            lambda p: torch.mean(p * p),
            lambda p: torch.mean((p - 1) * (p - 1)),
        ),
        "wgangp": (lambda p: -p.mean(), lambda p: p.mean(), lambda p: -p.mean()),
    }[kind]


def restated_step(g, d, x, t, v):
    """Losses and gradients (by name) of D's step and, with D moved by Adam, of G's."""
    on_real, on_fake, for_g = gan_losses(v["gan"])

    def pair(y):
        return torch.cat((x, y), dim=1) if v["conditional"] else y

    fake = g(x)
    losses, d_grads = {}, {}
    if d is not None:
        still = fake.detach()
        losses["d_fake"], losses["d_real"] = on_fake(d(pair(still))), on_real(d(pair(t)))
        total = losses["d_fake"] + losses["d_real"]
        if v["halve_d"]:
            total = total / 2
        if v["gan"] == "wgangp":
            alpha = torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype)
            between = (alpha * pair(t) + (1 - alpha) * pair(still)).requires_grad_()
            slope = torch.autograd.grad(d(between).sum(), between, create_graph=True)[0]
            length = torch.sqrt(sum((s * s).sum((1, 2)) for s in slope.unbind(1)))
            losses["d_penalty"] = ((length - 1) ** 2).mean()
            total = total + v["penalty_weight"] * losses["d_penalty"]
        names, parameters = zip(*d.named_parameters(), strict=True)
        grads = torch.autograd.grad(total, parameters)
        d_grads = dict(zip(names, grads, strict=True))
        with torch.no_grad():
            for p, grad in zip(parameters, grads, strict=True):
                p -= v["lr"] * grad / (grad.abs() + 1e-8)  # Adam's first step
    losses["l1"] = (fake - t).abs().mean()
    total = v["l1_weight"] * losses["l1"]
    if d is not None:
        losses["g_gan"] = for_g(d(pair(fake)))
        total = total + v["gan_weight"] * losses["g_gan"]
    names, parameters = zip(*g.named_parameters(), strict=True)
    g_grads = dict(zip(names, torch.autograd.grad(total, parameters), strict=True))
    return losses, d_grads, g_grads


def double_trainer(**overrides):
    values = recipes.load(
        "facades",
        **{"depth": 5, "ngf": 2, "ndf": 2, "dropout": "none", "channels_last": False, **overrides},
    )
    trainer = Trainer(values)
    trainer.g.double()
    if trainer.d is not None:
        trainer.d.double()
    return trainer


def gradient_state(net, write):
    """The gradients of `net` under junyanz's names: a copy whose weights are the gradients."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for p, q in zip(twin.parameters(), net.parameters(), strict=True):
            p.copy_(q.grad)
    return write(twin)


def double_copy(other, state):
    other.load_state_dict(state, strict=True)
    return other.double()


CASES = [
    *[
        {"gan": gan, "d_layers": n, "conditional": conditional}
        for gan in ("vanilla", "lsgan", "wgangp")
        for n in (0, 1, 3)
        for conditional in (True, False)
    ],
    {"d_layers": 2},
    {"d_layers": 4, "norm": "instance"},
    {"d_layers": 5, "size": 128},
    {"d_layers": 6, "size": 256},
    {"norm": "none", "gan": "lsgan"},
    {"halve_d": False},
    {"gan_weight": 0.0},
    {"l1_weight": 0.0},
    {"gan_weight": 2.5, "l1_weight": 7.0, "batch": 2},
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))
def test_one_step_equals_the_restated_objective(case, monkeypatch):
    # junyanz.* writes float32, which a float64 comparison cannot use
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    case = dict(case)
    size, n = case.pop("size", 64), case.get("batch", 1)
    trainer = double_trainer(**case)
    v, norm = trainer.values, trainer.values["norm"]
    g = double_copy(JunyanzUnet(3, 3, 5, 2, norm).double(), junyanz.generator_state(trainer.g))
    d = None
    if trainer.d is not None:
        seen = 6 if v["conditional"] else 3
        d = junyanz_d(seen, v["d_layers"], 2, norm).double()
        d = double_copy(d, junyanz.discriminator_state(trainer.d))
    generator = torch.Generator().manual_seed(5)
    x, t = (torch.rand(n, 3, size, size, generator=generator).double() * 2 - 1 for _ in range(2))

    torch.manual_seed(11)
    losses, d_grads, g_grads = restated_step(g, d, x, t, v)
    torch.manual_seed(11)
    found = trainer.step([(x, t)])

    assert set(found) == set(losses)
    for name, value in losses.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=RTOL, atol=ATOL)
    ours = gradient_state(trainer.g, junyanz.generator_state)
    for name, value in g_grads.items():
        torch.testing.assert_close(ours[name], value, rtol=RTOL, atol=1e-9, msg=name)
    if d is not None:
        ours = gradient_state(trainer.d, junyanz.discriminator_state)
        for name, value in d_grads.items():
            torch.testing.assert_close(ours[name], value, rtol=RTOL, atol=1e-9, msg=name)


def test_accumulated_batches_give_the_gradients_of_the_joined_batch():
    """With statistics per image; with batch statistics the batches are different networks."""
    joined, split = (double_trainer(norm="image", batch=b) for b in (4, 1))
    x, t = (torch.rand(4, 3, 64, 64).double() * 2 - 1 for _ in range(2))
    one = joined.step([(x, t)])
    four = split.step([(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-10, atol=1e-12)
    for a, b in ((joined.g, split.g), (joined.d, split.d)):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10)


def test_the_penalty_works_beside_a_compiled_network(monkeypatch):
    """aot_eager: the graphs of torch.compile, without its compiler."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compiled(net, backend="aot_eager"))
    x, t = (torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(2))
    found = []
    for compile in (False, True):
        values = recipes.load(
            "facades",
            **{"depth": 5, "ngf": 2, "ndf": 2, "d_layers": 1, "dropout": "none"},
            **{"gan": "wgangp", "norm": "image", "compile": compile},
        )
        found.append(Trainer(values).step([(x, t)]))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "image", "instance"])
def test_f16_trains_with_every_norm(norm):
    """A batch of one leaves 1x1 maps of variance 0, whose gradient needs more than f16."""
    values = recipes.load("facades", depth=6, ngf=4, ndf=4, norm=norm, precision="f16")
    trainer = Trainer(values)
    before = [p.detach().clone() for p in trainer.g.parameters()]
    x, t = (torch.rand(1, 3, 64, 64) * 2 - 1 for _ in range(2))
    for _ in range(12):
        trainer.step([(x, t)])
    assert trainer.scaler_g.get_scale() >= 2**8
    moved = [not torch.equal(p, q) for p, q in zip(trainer.g.parameters(), before, strict=True)]
    assert sum(moved) > len(moved) / 2


def test_f16_gradients_that_always_overflow_stop_the_run():
    values = recipes.load("facades", depth=5, ngf=2, ndf=2, precision="f16")
    trainer = Trainer(values)
    trainer.g.d5.conv.weight.register_hook(lambda grad: grad * float("inf"))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with pytest.raises(TrainingStopped, match=r"G's gradients overflow f16 at every scale"):
        for _ in range(40):
            trainer.step([(x, x)])


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_autocast_steps_stay_near_float32(precision):
    x, t = (torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(2))
    losses = []
    for p in ("f32", precision):
        values = recipes.load("facades", depth=5, ngf=4, ndf=4, dropout="none", precision=p)
        losses.append(Trainer(values).step([(x, t)]))
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_summed_in_float32(dtype):
    fake, t = (torch.rand(1, 3, 64, 64) * 2 - 1 for _ in range(2))
    fake = fake.to(dtype)
    objective = Objective(gan="lsgan", gan_weight=1.0, l1_weight=1.0, conditional=False)
    _, parts = objective.g_loss(nn.Identity(), t, t, fake)
    wide = fake.double()
    expected = {"l1": (wide - t).abs().mean(), "g_gan": ((wide - 1) ** 2).mean()}
    for name, value in parts.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=0)
