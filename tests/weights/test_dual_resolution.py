"""DDRNet and PIDNet as their authors name and build them, restated in torch: their files give the twins the same scores.

That the networks equal their twins is held by test_torch_parity, and in training by test_heads.
"""

import numpy as np
import pytest

from rtseg_jax import torch_ref
from rtseg_jax.weights import torch_files
from tests.networks import shapes

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def convs(*specs, relu=False):
    """Convolutions (in, out, kernel, stride, bias), each with its norm; ReLUs between them, and behind them if asked."""
    modules = []
    for ci, co, k, s, bias in specs:
        modules += [nn.Conv2d(ci, co, k, s, k // 2, bias=bias), nn.BatchNorm2d(co), nn.ReLU()]
    return nn.Sequential(*(modules if relu else modules[:-1]))


class Block(nn.Module):
    def __init__(self, channels, sizes, stride, relu):
        super().__init__()
        self.relu, self.count = relu, len(sizes)
        ci = channels
        for n, (co, k) in enumerate(sizes, start=1):
            # The stride is in the first 3x3 convolution.
            s = stride if k == 3 and n < 3 and (n == 1 or sizes[0][1] == 1) else 1
            self.add_module(f"conv{n}", nn.Conv2d(ci, co, k, s, k // 2, bias=False))
            self.add_module(f"bn{n}", nn.BatchNorm2d(co))
            ci = co
        self.downsample = None
        if stride != 1 or ci != channels:
            self.downsample = convs((channels, ci, 1, stride, False))

    def forward(self, x):
        y = x
        for n in range(1, self.count + 1):
            y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
            y = F.relu(y) if n < self.count else y
        y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y) if self.relu else y


def basic(channels, features, count=2, stride=1):
    """Several blocks, the last one without ReLU."""
    return nn.Sequential(
        *(
            Block(
                features if i else channels,
                [(features, 3)] * 2,
                1 if i else stride,
                relu=i < count - 1,
            )
            for i in range(count)
        )
    )


def bottleneck(channels, width, stride=1):
    return Block(channels, [(width, 1), (width, 3), (2 * width, 1)], stride, relu=False)


def norm_first(channels, features, k=1, groups=1, pool=None):
    conv = nn.Conv2d(channels, features, k, 1, k // 2, groups=groups, bias=False)
    modules = [nn.BatchNorm2d(channels), nn.ReLU(), conv]
    return nn.Sequential(*([] if pool is None else [pool]), *modules)


class SegHead(nn.Module):
    def __init__(self, channels, width, features):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, features, 1)

    def forward(self, x):
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


def up(x, size):
    return F.interpolate(x, size=size, mode="bilinear")


class Pyramid(nn.Module):
    def __init__(self, channels, width, features):
        super().__init__()
        pools = [nn.AvgPool2d(5, 2, 2), nn.AvgPool2d(9, 4, 4), nn.AvgPool2d(17, 8, 8)]
        for i, pool in enumerate([None, *pools, nn.AdaptiveAvgPool2d(1)]):
            self.add_module(f"scale{i}", norm_first(channels, width, pool=pool))
        self.compression = norm_first(5 * width, features)
        self.shortcut = norm_first(channels, features)

    def scales(self, x):
        return [up(getattr(self, f"scale{i}")(x), x.shape[2:]) for i in range(5)]


class DAPPM(Pyramid):
    def __init__(self, channels, width, features):
        super().__init__(channels, width, features)
        for i in range(1, 5):
            self.add_module(f"process{i}", norm_first(width, width, 3))

    def forward(self, x):
        maps = self.scales(x)
        for i in range(1, 5):
            maps[i] = getattr(self, f"process{i}")(maps[i] + maps[i - 1])
        return self.compression(torch.cat(maps, 1)) + self.shortcut(x)


class AuthorsDDRNet(nn.Module):
    names = ("logits", "aux")

    def __init__(self, k):
        super().__init__()
        self.conv1 = convs((3, 32, 3, 2, True), (32, 32, 3, 2, True), relu=True)
        self.layer1, self.layer2 = basic(32, 32), basic(32, 64, stride=2)
        self.layer3, self.layer4 = basic(64, 128, stride=2), basic(128, 256, stride=2)
        self.layer3_, self.layer4_ = basic(64, 64), basic(64, 64)
        self.layer5 = nn.Sequential(bottleneck(256, 256, 2))
        self.layer5_ = nn.Sequential(bottleneck(64, 64))
        self.compression3, self.compression4 = (convs((c, 64, 1, 1, False)) for c in (128, 256))
        self.down3 = convs((64, 128, 3, 2, False))
        self.down4 = convs((64, 128, 3, 2, False), (128, 256, 3, 2, False))
        self.spp = DAPPM(512, 128, 128)
        self.final_layer, self.seghead_extra = SegHead(128, 64, k), SegHead(64, 64, k)

    def forward(self, image):
        size = [n // 8 for n in image.shape[2:]]
        a = F.relu(self.layer2(F.relu(self.layer1(self.conv1(image)))))
        b, x_ = self.layer3(a), self.layer3_(a)
        x = b + self.down3(F.relu(x_))
        x_ = extra = x_ + up(self.compression3(F.relu(b)), size)
        d, x_ = self.layer4(F.relu(x)), self.layer4_(F.relu(x_))
        x = d + self.down4(F.relu(x_))
        x_ = x_ + up(self.compression4(F.relu(d)), size)
        x = up(self.spp(self.layer5(F.relu(x))), size)
        return self.final_layer(x + self.layer5_(F.relu(x_))), self.seghead_extra(extra)


class PAPPM(Pyramid):
    def __init__(self, channels, width, features):
        super().__init__(channels, width, features)
        self.scale_process = norm_first(4 * width, 4 * width, 3, groups=4)

    def forward(self, x):
        first, *others = self.scales(x)
        y = self.scale_process(torch.cat([y + first for y in others], 1))
        return self.compression(torch.cat([first, y], 1)) + self.shortcut(x)


class Pag(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.f_x, self.f_y = (convs((channels, width, 1, 1, False)) for _ in range(2))

    def forward(self, x, y):
        size = x.shape[2:]
        s = torch.sigmoid((self.f_x(x) * up(self.f_y(y), size)).sum(1, keepdim=True))
        return (1 - s) * x + s * up(y, size)


class LightBag(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv_p, self.conv_i = (convs((channels, channels, 1, 1, False)) for _ in range(2))

    def forward(self, p, i, d):
        s = torch.sigmoid(d)
        return self.conv_p((1 - s) * i + p) + self.conv_i(i + s * p)


class AuthorsPIDNet(nn.Module):
    names = ("aux", "logits", "boundary")

    def __init__(self, k):
        super().__init__()
        self.conv1 = convs((3, 32, 3, 2, True), (32, 32, 3, 2, True), relu=True)
        self.relu = nn.ReLU(inplace=True)
        self.layer1, self.layer2 = basic(32, 32), basic(32, 64, stride=2)
        self.layer3, self.layer4 = basic(64, 128, 3, 2), basic(128, 256, 3, 2)
        self.layer5 = nn.Sequential(bottleneck(256, 256, 2), bottleneck(512, 256))
        self.compression3, self.compression4 = (convs((c, 64, 1, 1, False)) for c in (128, 256))
        self.pag3, self.pag4 = Pag(64, 32), Pag(64, 32)
        self.layer3_, self.layer4_ = basic(64, 64), basic(64, 64)
        self.layer5_ = nn.Sequential(bottleneck(64, 64))
        self.layer3_d = Block(64, [(32, 3)] * 2, 1, relu=False)
        self.layer4_d = nn.Sequential(bottleneck(32, 32))
        self.layer5_d = nn.Sequential(bottleneck(64, 64))
        self.diff3, self.diff4 = convs((128, 32, 3, 1, False)), convs((256, 64, 3, 1, False))
        self.spp, self.dfm = PAPPM(512, 96, 128), LightBag(128)
        self.seghead_p, self.seghead_d = SegHead(64, 128, k), SegHead(64, 32, 1)
        self.final_layer = SegHead(128, 128, k)

    def forward(self, image):
        size = [n // 8 for n in image.shape[2:]]
        x = self.relu(self.layer2(self.relu(self.layer1(self.conv1(image)))))
        p, d = self.layer3_(x), self.layer3_d(x)
        x = self.relu(self.layer3(x))
        p = early = self.pag3(p, self.compression3(x))
        d = d + up(self.diff3(x), size)
        x = self.relu(self.layer4(x))
        p, d = self.layer4_(self.relu(p)), self.layer4_d(self.relu(d))  # early changes with p
        p = self.pag4(p, self.compression4(x))
        d = late = d + up(self.diff4(x), size)
        p, d = self.layer5_(self.relu(p)), self.layer5_d(self.relu(d))
        x = up(self.spp(self.layer5(x)), size)
        return self.seghead_p(early), self.final_layer(self.dfm(p, x, d)), self.seghead_d(late)


# The network, the number of keys without those of the training heads, and which keys these are.
AUTHORS = {
    "ddrnet23_slim": (AuthorsDDRNet, 333, ("seghead_extra.",)),
    "pidnet_s": (AuthorsPIDNet, 453, ("seghead_p.", "seghead_d.")),
}


def randomise(network):
    generator = torch.Generator().manual_seed(0)
    for name, x in network.state_dict().items():
        if name.endswith("var") or (x.ndim == 1 and name.endswith("weight")):
            x.uniform_(0.5, 1.5, generator=generator)
        elif x.ndim == 4:
            x.normal_(0, x[0].numel() ** -0.5, generator=generator)
        elif x.ndim:
            x.normal_(0, 0.2, generator=generator)


@pytest.mark.parametrize("variant", AUTHORS)
def test_a_released_file(variant, tmp_path):
    """With the wrapping of the authors' trainer: "model." before each name, and the weights of a loss beside them."""
    build, count, heads = AUTHORS[variant]
    theirs = build(19)
    randomise(theirs)
    state = theirs.state_dict()
    assert sum(not name.startswith(heads) for name in state) == count
    wrapped = {f"model.{name}": value for name, value in state.items()}
    torch.save({**wrapped, "sem_loss.criterion.weight": torch.ones(19)}, tmp_path / "best.pt")
    variables = torch_files.load_torch(tmp_path / "best.pt", shapes(variant, 19))

    twin = torch_ref.create(variant, 19)
    torch_ref.load(twin, torch_files.to_torch(variables))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 128, 192)))
    for train in (False, True):
        with torch.inference_mode():
            expected = dict(zip(theirs.names, theirs.double().train(train)(image), strict=True))
            outputs = twin.double().train(train).outputs(image)
        assert set(outputs) == set(theirs.names)
        for name, x in outputs.items():
            want = expected[name].numpy()
            np.testing.assert_allclose(x.numpy(), want, rtol=0, atol=1e-9 * np.ptp(want))


def test_ddrnets_imagenet_weights(tmp_path):
    """The classifier has the trunk's names, a pyramid and heads it has not."""
    state = {
        name: value
        for name, value in AuthorsDDRNet(2).state_dict().items()
        if not name.startswith(("spp", "final_layer", "seghead"))
    }
    others = {
        name: torch.ones(3) for name in ("down5.0.weight", "last_layer.1.bias", "linear.bias")
    }
    torch.save({**state, **others}, tmp_path / "imagenet.pth")
    loaded = torch_files.load_torch_backbone(tmp_path / "imagenet.pth", shapes("ddrnet23_slim", 2))
    assert set(loaded["params"]) == {"backbone"}
    kernel = loaded["params"]["backbone"]["down4_2"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), state["down4.3.weight"])
