# SPDX-License-Identifier: MIT
"""VGG and ResNet in PyTorch, run and trained in the ways in which PyTorch is fast."""

from convstudy.measure import pytorch_unet
from convstudy.measure.pytorch_ops import TorchOps
from convstudy.program.trace import trace


def module(network):
    """Return `network` as a ``torch.nn.Module`` with the same parameters, on the CPU.

    It makes the same calls of PyTorch as torchvision's networks do (which need not be installed),
    and drops what nobody reads any more, as they do.

    Parameters
    ----------
    network : Network
    """
    import torch

    ops = TorchOps()
    shape = (1, network.n_channels, *2 * (max(32, network.least_size),))
    steps = _steps(trace(network, shape))

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, array in network.state_dict().items():
                tensor = torch.from_numpy(array)
                if name in network.trained:
                    self.register_parameter(_own(name), torch.nn.Parameter(tensor))
                else:
                    self.register_buffer(_own(name), tensor)

        def forward(self, x):
            values = [x]
            for method, inputs, names, options, last_read in steps:
                given = [values[i] for i in inputs] + [getattr(self, name) for name in names]
                if method == "batch_norm":
                    # In training, by the batch's statistics.
                    result = torch.nn.functional.batch_norm(
                        given[0], *given[3:], *given[1:3], training=self.training, **options
                    )
                elif method == "conv2d" and len(given) == 3:
                    result = ops.conv2d(given[0], given[1], bias=given[2], **options)
                else:
                    result = getattr(ops, method)(*given, **options)
                values.append(result)
                for i in last_read:
                    values[i] = None
            return values[-1]

    return Classifier()


def _own(name):
    # PyTorch's names of parameters have no dots.
    return name.replace(".", "/")


def _steps(found):
    """Return (method, values, parameters, options, values read for the last time) of each call.

    Values are numbered: 0 is the input, and each call makes the next.
    """
    numbers = {found.input: 0} | {call.output: i for i, call in enumerate(found.calls, start=1)}
    last = dict.fromkeys(numbers.values())
    for place, call in enumerate(found.calls):
        last |= {numbers[value]: place for value in call.inputs}
    return [
        (
            call.method,
            tuple(numbers[value] for value in call.inputs),
            tuple(_own(each.name) for each in call.parameters),
            call.options,
            tuple(number for number, where in last.items() if where == place),
        )
        for place, call in enumerate(found.calls)
    ]


def loss(scores, labels):
    """Return the cross-entropy, which classifiers are trained by."""
    import torch

    if scores.dtype == torch.bfloat16:
        scores = scores.float()
    return torch.nn.functional.cross_entropy(scores, labels)


class Runner(pytorch_unet.Runner):
    """A classifier in PyTorch on one GPU, as `pytorch_unet.Runner`; of each image, its class."""

    make, loss = staticmethod(module), staticmethod(loss)

    def gradients(self):
        return {name.replace("/", "."): each for name, each in super().gradients().items()}


def truth(network, images, labels, device="cuda"):
    """Return scores in evaluation, and gradients in training, in float64."""
    scores, gradients = pytorch_unet.truth(network, images, labels, device, module, loss)
    return scores, {name.replace("/", "."): each for name, each in gradients.items()}
