# SPDX-License-Identifier: MIT
"""U-Net in PyTorch, run and trained in the ways in which PyTorch is fast."""

import numpy as np

from convstudy.measure.pytorch import capture

# How a batch is run: call by call; as a captured CUDA graph; or compiled by torch.compile, and then
# captured, the optimiser with the rest, which the mode reduce-overhead leaves out of its graphs.
WAYS = ("eager", "graph", "compile")


def module(network):
    """Return `network` as a ``torch.nn.Module`` with the same parameters, on the CPU.

    Parameters
    ----------
    network : UNet
        With transposed convolutions.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    def double_conv(c, mid, k):
        layers = []
        for before, after in ((c, mid), (mid, k)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers.append(nn.ReLU(inplace=True))
        block = nn.Module()
        block.double_conv = nn.Sequential(*layers)
        return block

    class Unet(nn.Module):
        def __init__(self):
            super().__init__()
            first, *below = network.encoder
            self.inc = double_conv(first.c, first.mid, first.k)
            for level, block in enumerate(below, start=1):
                down = nn.Module()
                down.maxpool_conv = nn.Sequential(
                    nn.MaxPool2d(2), double_conv(block.c, block.mid, block.k)
                )
                setattr(self, f"down{level}", down)
            for step, up in enumerate(network.decoder, start=1):
                joined = nn.Module()
                joined.up = nn.ConvTranspose2d(up.c, up.k, 2, stride=2)
                joined.conv = double_conv(up.block.c, up.block.mid, up.block.k)
                setattr(self, f"up{step}", joined)
            self.outc = nn.Module()
            self.outc.conv = nn.Conv2d(network.decoder[-1].block.k, network.n_classes, 1)

        def forward(self, x):
            skips = [self.inc.double_conv(x)]
            for level in range(1, len(network.encoder)):
                pool, block = getattr(self, f"down{level}").maxpool_conv
                skips.append(block.double_conv(pool(skips[-1])))
            y = skips.pop()
            for step in range(1, len(network.decoder) + 1):
                joined, skip = getattr(self, f"up{step}"), skips.pop()
                y = joined.up(y)
                down, right = (skip.shape[i] - y.shape[i] for i in (2, 3))
                sides = (right // 2, right - right // 2, down // 2, down - down // 2)
                y = joined.conv.double_conv(torch.cat([skip, functional.pad(y, sides)], dim=1))
            return self.outc.conv(y)

    made = Unet()
    state = {name: torch.from_numpy(array) for name, array in network.state_dict().items()}
    made.load_state_dict(state)
    return made


def loss(scores, masks):
    """Return the loss that the original trains with: cross-entropy, and 1 - Dice."""
    import torch
    from torch.nn import functional

    if scores.dtype == torch.bfloat16:
        scores = scores.float()
    shares = functional.softmax(scores, dim=1)
    truth = functional.one_hot(masks, scores.shape[1]).permute(0, 3, 1, 2).to(scores.dtype)
    shared, both = 2 * (shares * truth).sum(), shares.sum() + truth.sum()
    return functional.cross_entropy(scores, masks) + 1 - (shared + 1e-6) / (both + 1e-6)


class Runner:
    """U-Net in PyTorch on one GPU, in one precision and layout, ready to be timed.

    Parameters
    ----------
    network : UNet
    images : (N, C, H, W) float32 array
    masks : (N, H, W) integer array
    precision : {"fp32", "tf32", "bf16"}
        bf16: inference in bf16 altogether; training under autocast, with fp32 parameters, as
        bf16 is trained.
    channels_last : bool
    device : str
    """

    make, loss = staticmethod(module), staticmethod(loss)
    # What is compiled, what an optimiser keeps and cuDNN's choice come with the first calls.
    warmup = 3

    def __init__(self, network, images, masks, precision, channels_last, device="cuda"):
        import torch

        self.torch, self.precision = torch, precision
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = device
        self.module = self.make(network).to(device, memory_format=self.layout)
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(
            device, memory_format=self.layout
        )
        self.masks = torch.from_numpy(np.ascontiguousarray(masks)).long().to(device)
        self._set_precision()

    def inference(self, way):
        """Return ``run()``, which gives the scores and does not wait."""
        torch, bf16 = self.torch, self.precision == "bf16"
        network = self.module.eval()
        images = self.images
        if bf16:
            network, images = network.to(torch.bfloat16), images.to(torch.bfloat16)
        if way == "compile":
            network = self._compiled(network)

        def call():
            with torch.inference_mode():
                return network(images)

        return self._in_its_way(way, call)

    def training(self, way):
        """Return ``run()``, which makes one step of AdamW, gives the loss and does not wait."""
        torch = self.torch
        network = self.module.train()
        # What a graph replays must not be asked for on the host.
        options = {"capturable": True, "fused": True} if self.device == "cuda" else {}
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, **options)
        kind = "cuda" if self.device == "cuda" else "cpu"

        def forward(images, masks):
            with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
                return self.loss(network(images), masks)

        if way == "compile":
            forward = self._compiled(forward)

        def step():
            optimiser.zero_grad(set_to_none=True)
            value = forward(self.images, self.masks)
            value.backward()
            optimiser.step()
            return value.detach()

        return self._in_its_way(way, step)

    def gradients(self):
        """Return the gradients of the last step, by name, as NumPy arrays."""
        named = self.module.named_parameters()
        return {name: each.grad.float().cpu().numpy() for name, each in named}

    def _compiled(self, function):
        # PyTorch compiles eight forms of a function in a process, and runs others call by call; it
        # says so in its log alone. What was compiled before is captured, and can be forgotten.
        self.torch.compiler.reset()
        return self.torch.compile(function, dynamic=False)

    def _in_its_way(self, way, call):
        self._set_precision()
        return call if way == "eager" else capture([call], self.warmup)

    def _set_precision(self):
        cudnn, cublas = self.torch.backends.cudnn, self.torch.backends.cuda.matmul
        cudnn.benchmark = True
        cudnn.allow_tf32 = cublas.allow_tf32 = self.precision != "fp32"


class Trainer:
    """U-Net in PyTorch, trained in fp32 by AdamW as it is by default.

    Parameters
    ----------
    network : UNet
    rate : float
        The learning rate.
    channels_last : bool
    device : str
    """

    def __init__(self, network, rate, channels_last, device="cuda"):
        import torch

        self._torch, self._device = torch, device
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._module = module(network).to(device, memory_format=self._layout).train()
        self._optimiser = torch.optim.AdamW(self._module.parameters(), lr=rate)

    def step(self, images, masks):
        """Train on a batch of NumPy arrays, and return its loss before that."""
        images = self._torch.from_numpy(np.ascontiguousarray(images))
        masks = self._torch.from_numpy(np.ascontiguousarray(masks)).long().to(self._device)
        self._optimiser.zero_grad()
        value = loss(self._module(images.to(self._device, memory_format=self._layout)), masks)
        value.backward()
        self._optimiser.step()
        return value.item()


def truth(network, images, masks, device="cuda", make=module, loss=loss):
    """Return scores in evaluation, and gradients in training, in float64.

    Returns
    -------
    scores : (N, n_classes, H, W) array
    gradients : dict of str to array
        Of `loss` by each parameter.
    """
    import torch

    # Which of cuDNN's algorithms is fastest in float64 takes longer to find out than to use any.
    torch.backends.cudnn.benchmark = False
    made = make(network).double().to(device)
    given = torch.from_numpy(np.ascontiguousarray(images)).to(device, torch.float64)
    with torch.inference_mode():
        scores = made.eval()(given).cpu().numpy()
    true = torch.from_numpy(np.ascontiguousarray(masks)).long().to(device)
    loss(made.train()(given), true).backward()
    return scores, {name: each.grad.cpu().numpy() for name, each in made.named_parameters()}


def with_peak(begin, once_more):
    """Return what `begin` returns, and the bytes that PyTorch took at most for it.

    Parameters
    ----------
    begin : callable
        Gives a runnable, and something else.
    once_more : bool
        Of the runnable's next run, with what it keeps, and not of its beginning.
    """
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = begin()
    if once_more:
        torch.cuda.reset_peak_memory_stats()
        result[0]()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before
