// SPDX-License-Identifier: MIT
// What the kernels of a training step tell each other on the device, so that the host need not know
// of it, and a graph of them can be replayed as it is. The host writes the rate alone.
enum Control {
    RATE,         // the learning rate
    NORM,         // of all gradients, before they are clipped
    FACTOR,       // by which gradients are clipped
    FINITE,       // 1, or 0 where a gradient is not finite: then nothing changes
    CORRECTION1,  // 1 - beta1^steps, and
    CORRECTION2,  // 1 - beta2^steps
};
enum Steps { TAKEN, SKIPPED };
