# SPDX-License-Identifier: MIT
"""The network as PyTorch builds it, to compare with."""


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
