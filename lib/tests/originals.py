# SPDX-License-Identifier: MIT
"""The networks as PyTorch builds them, to compare with."""


def torch_unet(torch, bilinear=False, width=64, n_channels=3, n_classes=2):
    """Build the same network of PyTorch's own layers, its modules named as the original's."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, parts):
            super().__init__()
            for name, part in parts.items():
                self.add_module(name, part)

    def double_conv(c, mid, k):
        layers = []
        for a, b in ((c, mid), (mid, k)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        return Block({"double_conv": nn.Sequential(*layers)})

    def down(c, k):
        return Block({"maxpool_conv": nn.Sequential(nn.MaxPool2d(2), double_conv(c, k, k))})

    def up(c, k):
        if bilinear:
            enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            enlarge = nn.ConvTranspose2d(c, c // 2, kernel_size=2, stride=2)
        return Block({"up": enlarge, "conv": double_conv(c, c // 2 if bilinear else k, k)})

    half = 2 if bilinear else 1
    a, b, c, d, e = (width << level for level in range(5))
    network = Block(
        {
            "inc": double_conv(n_channels, a, a),
            "down1": down(a, b),
            "down2": down(b, c),
            "down3": down(c, d),
            "down4": down(d, e // half),
            "up1": up(e, d // half),
            "up2": up(d, c // half),
            "up3": up(c, b // half),
            "up4": up(b, a),
            "outc": Block({"conv": nn.Conv2d(a, n_classes, 1)}),
        }
    )

    def forward(x):
        skips = [network.inc.double_conv(x)]
        for name in ("down1", "down2", "down3", "down4"):
            pool, block = getattr(network, name).maxpool_conv
            skips.append(block.double_conv(pool(skips[-1])))
        x = skips.pop()
        for name in ("up1", "up2", "up3", "up4"):
            module, skip = getattr(network, name), skips.pop()
            x = module.up(x)
            dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = nn.functional.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
            x = module.conv.double_conv(torch.cat((skip, x), dim=1))
        return network.outc.conv(x)

    network.forward = forward
    return network.eval()


def torch_vgg16(torch, num_classes=1000, batch_norm=False, width=64):
    """Build the same network of PyTorch's own layers, its modules named as torchvision's."""
    nn = torch.nn
    layers, c = [], 3
    for k in (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M"):
        if k == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        norm = [nn.BatchNorm2d(k * width)] if batch_norm else []
        layers += [nn.Conv2d(c, k * width, 3, padding=1), *norm, nn.ReLU()]
        c = k * width
    network, hidden = nn.Module(), 64 * width
    network.features = nn.Sequential(*layers)
    network.classifier = nn.Sequential(
        *(nn.Linear(c * 49, hidden), nn.ReLU(), nn.Dropout(0.0)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.0)),
        nn.Linear(hidden, num_classes),
    )

    def forward(x):
        x = nn.functional.adaptive_avg_pool2d(network.features(x), (7, 7))
        return network.classifier(x.flatten(1))

    network.forward = forward
    return network.eval()


def torch_resnet(torch, depth, num_classes=1000, width=64):
    """Build the same network of PyTorch's own layers, its modules named as torchvision's."""
    nn = torch.nn
    counts, expansion = {18: ((2, 2, 2, 2), 1), 50: ((3, 4, 6, 3), 4)}[depth]

    class Block(nn.Module):
        def __init__(self, c, inside, stride):
            super().__init__()
            k = inside * expansion
            sizes = [(c, inside, 1, 1), (inside, inside, 3, stride), (inside, k, 1, 1)]
            if depth == 18:
                sizes = [(c, inside, 3, stride), (inside, inside, 3, 1)]
            self.count = len(sizes)
            for i, (a, b, size, step) in enumerate(sizes, start=1):
                conv = nn.Conv2d(a, b, size, step, size // 2, bias=False)
                self.add_module(f"conv{i}", conv)
                self.add_module(f"bn{i}", nn.BatchNorm2d(b))
            self.downsample = None
            if stride != 1 or c != k:
                conv = nn.Conv2d(c, k, 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(k))

        def forward(self, x):
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = nn.functional.relu(y) if i < self.count else y
            return nn.functional.relu(y + (self.downsample(x) if self.downsample else x))

    network, c = nn.Module(), width
    network.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    for stage, count in enumerate(counts):
        blocks = []
        for i in range(count):
            blocks.append(Block(c, width << stage, 2 if stage and not i else 1))
            c = (width << stage) * expansion
        network.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
    network.fc = nn.Linear(c, num_classes)

    def forward(x):
        x = nn.functional.relu(network.bn1(network.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(network, f"layer{stage}")(x)
        return network.fc(x.mean(dim=(2, 3)))

    network.forward = forward
    return network.eval()
